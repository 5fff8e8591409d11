// Polls the outbox once a second, and replaces only the mails that have changed.
const outbox = document.getElementById("outbox");

const cards = (root) => [...root.querySelectorAll("article")];
const versions = (root) => cards(root).map((card) => `${card.id} ${card.dataset.version}`);

// The server sends UTC; show the visitor's local time.
function localise(root) {
  for (const time of root.querySelectorAll("time")) {
    const moment = new Date(time.dateTime);
    time.textContent = moment.toLocaleTimeString();
    time.title = moment.toLocaleString();
  }
}

function update(fresh) {
  const totals = outbox.querySelector(".totals");
  const text = fresh.querySelector(".totals").textContent;
  if (totals.textContent !== text) totals.textContent = text;
  if (String(versions(outbox)) === String(versions(fresh))) return;
  localise(fresh);
  for (const card of cards(fresh)) {
    const old = document.getElementById(card.id);
    if (old) card.querySelector("details").open = old.querySelector("details").open;
    if (old?.dataset.version === card.dataset.version) card.replaceWith(old);
    else card.classList.add("changed");
  }
  outbox.querySelector(".mails").replaceWith(fresh.querySelector(".mails"));
}

async function refresh() {
  try {
    const response = await fetch(outbox.dataset.live);
    if (response.ok) {
      update(new DOMParser().parseFromString(await response.text(), "text/html"));
    }
  } catch {
    // The site may be restarting: poll again.
  }
  setTimeout(refresh, 1000);
}
localise(outbox);
refresh();
