// Polls the statistics four times a second, and draws the last ten seconds.
const pool = document.getElementById("pool");
const SAMPLES = 40;
const history = [];

// Returns the path of a step chart that is closed at the bottom.
function steps(values, top) {
  const width = 600 / SAMPLES;
  const start = 600 - values.length * width;
  const path = values.map((value, index) => {
    const height = 160 - (value / top) * 154;
    return `V${height.toFixed(1)}H${(start + (index + 1) * width).toFixed(1)}`;
  });
  return `M${start},160${path.join("")}V160`;
}

function draw() {
  for (const chart of pool.querySelectorAll(".chart")) {
    const lines = [...chart.querySelectorAll("path")];
    const series = lines.map((line) => history.map((figures) => figures[line.classList]));
    const top = Math.max(chart.dataset.least, ...series.flat());
    chart.querySelector(".top").textContent = top;
    lines.forEach((line, index) => line.setAttribute("d", steps(series[index], top)));
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
  // Drawn behind `in_use`, so that the visible rest is `waiting`.
  figures.demand = figures.in_use + figures.waiting;
  const before = history.at(-1) ?? figures;
  figures.dialled = figures.opened - before.opened;
  figures.leased = figures.dialled + figures.reused - before.reused;
  history.push(figures);
  if (history.length > SAMPLES) history.shift();
  draw();
}

async function refresh() {
  try {
    const response = await fetch(pool.dataset.live);
    if (response.ok) show(await response.json());
  } catch {
    // The site may be restarting: poll again.
  }
  setTimeout(refresh, 250);
}
refresh();
