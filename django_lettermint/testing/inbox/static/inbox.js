// Keeps the list up to date and lets arrow keys walk through it. All works without.
const list = document.getElementById("mails");

// The server sends UTC; show the reader's local time.
function localise(root) {
  for (const time of root.querySelectorAll("time")) {
    const moment = new Date(time.dateTime);
    const today = moment.toDateString() === new Date().toDateString();
    time.textContent = today ? moment.toLocaleTimeString() : moment.toLocaleString();
    time.title = moment.toLocaleString();
  }
}
localise(document);

// Rows that stay are not moved: the focus stays where it is.
function update(fresh) {
  localise(fresh);
  const rows = [...fresh.querySelectorAll("#mails > li")];
  const kept = new Set(rows.map((row) => row.id));
  for (const row of [...list.children]) if (!kept.has(row.id)) row.remove();
  let place = list.firstElementChild;
  for (const row of rows) {
    const old = document.getElementById(row.id);
    if (old) {
      place = old.nextElementSibling;
      if (!row.matches(".unread")) {
        old.classList.remove("unread");
        old.querySelector(".unseen")?.remove();
      }
    } else {
      row.classList.add("arrived");
      list.insertBefore(row, place);
    }
  }
  for (const id of ["status", "hint", "clear"]) {
    const [here, there] = [document, fresh].map((root) => root.getElementById(id));
    if (here.innerHTML !== there.innerHTML) here.innerHTML = there.innerHTML;
  }
  document.title = fresh.title;
  document.body.dataset.version = fresh.body.dataset.version;
}

let wanted = document.body.dataset.version;
let fetching = false;
async function refresh() {
  if (fetching) return;
  fetching = true;
  let version;
  try {
    do {
      version = wanted;
      const response = await fetch(location.href);
      if (!response.ok) break;
      const text = await response.text();
      update(new DOMParser().parseFromString(text, "text/html"));
    } while (version !== wanted);
  } catch {
    // The relay is being restarted; the stream connects again, and tells its version.
  }
  fetching = false;
}

// A browser has six connections to a server: hidden tabs close theirs.
let stream = null;
function follow() {
  if (document.hidden) {
    stream?.close();
    stream = null;
  } else if (!stream) {
    stream = new EventSource("/live");
    stream.onmessage = (event) => {
      wanted = event.data;
      if (wanted !== document.body.dataset.version) refresh();
    };
  }
}

if (list) {
  document.addEventListener("visibilitychange", follow);
  follow();
}

document.addEventListener("keydown", (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
  const here = document.activeElement;
  if (event.key === "Escape") document.getElementById("back")?.click();
  if (!list || !["ArrowDown", "ArrowUp"].includes(event.key)) return;
  const search = document.getElementById("q");
  const stops = [search, ...list.querySelectorAll(".line a")];
  const place = stops.indexOf(here);
  if (place < 0) return;
  event.preventDefault();
  stops[place + (event.key === "ArrowDown" ? 1 : -1)]?.focus();
});
