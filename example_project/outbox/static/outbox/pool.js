// Asks for the numbers four times a second, and draws the last 15 seconds.
const pool = document.getElementById("pool");
const lines = document.querySelectorAll("#chart polyline");
const SAMPLES = 60;
const history = [];

function draw() {
  const top = Math.max(4, ...history.flatMap((f) => [f.size, f.in_use, f.waiting]));
  document.getElementById("top").textContent = top;
  for (const line of lines) {
    const points = history.map((figures, index) => {
      const x = 600 - (history.length - 1 - index) * (600 / (SAMPLES - 1));
      return `${x.toFixed(1)},${(157 - (figures[line.classList] / top) * 152).toFixed(1)}`;
    });
    line.setAttribute("points", points.join(" "));
  }
}

function show({ figures, progress }) {
  for (const cell of pool.querySelectorAll("[data-figure]")) {
    cell.textContent = figures[cell.dataset.figure];
  }
  if (progress) {
    document.getElementById("progress").value = progress.done;
    document.getElementById("progress-text").textContent =
      `${progress.done} of ${progress.size}, ${progress.failed} failed`;
  }
  history.push(figures);
  if (history.length > SAMPLES) history.shift();
  draw();
}

async function refresh() {
  try {
    const response = await fetch(pool.dataset.live);
    if (response.ok) show(await response.json());
  } catch {
    // The site is being restarted: ask again.
  }
  setTimeout(refresh, 250);
}
refresh();
