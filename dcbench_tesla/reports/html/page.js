"use strict";
// Tables that sort, plots and images from the data in #plots, and the switch between light and dark.

function element(name, properties, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

// ------------------------------------------------------------------------------------------------------------- tables

function sortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = element("button", { type: "button" }, ...head.childNodes);
    button.addEventListener("click", () => {
      const up = head.ariaSort !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.ariaSort = up ? "ascending" : "descending";
      const rows = [...table.tBodies[0].rows];
      table.tBodies[0].append(...rows.sort((a, b) => order(a.cells[column], b.cells[column], up ? 1 : -1)));
    });
    head.append(button);
  });
}

// numbers by value, texts by the alphabet, and what is empty or says why last, whichever way the others stand
const lacks = (cell) => !cell.textContent || cell.classList.contains("none");

function order(a, b, direction) {
  if (lacks(a) || lacks(b)) return lacks(a) - lacks(b);
  if (a.dataset.number && b.dataset.number) return direction * (a.dataset.number - b.dataset.number);
  return direction * a.textContent.localeCompare(b.textContent, "en", { numeric: true });
}

// -------------------------------------------------------------------------------------------------------------- plots

const { colours, plots, frames } = JSON.parse(document.getElementById("plots").textContent);
const SHAPES = ["circle", "triangle", "rect", "rectRot", "star"];
const DASHES = [[], [8, 4], [2, 3], [10, 3, 2, 3]];
const FLAT = [5, 5];
const FRONT = [2, 4];
const charts = [];

// black is this page's ink, which is light in the dark
const colourOf = (line, ink) => (line.front || colours[line.method] === "#000000" ? ink : colours[line.method]);
const dashOf = (line) => (line.front ? FRONT : line.flat ? FLAT : DASHES[line.variant % DASHES.length]);
const shapeOf = (line) =>
  line.front ? "circle" : SHAPES[(Object.keys(colours).indexOf(line.method) + line.variant) % SHAPES.length];

const radiusOf = (line, point) => (line.flat ? 0 : line.front ? 10 : point.reached ? 9 : 4.5);

function dataset(line, xs, stepped) {
  const points = line.flat ? xs.map((x) => ({ ...line.points[0], x, low: null })) : line.points;
  return {
    line,
    label: line.name,
    data: points,
    borderWidth: line.front ? 1.5 : 2,
    borderDash: dashOf(line),
    stepped: line.front || (stepped && !line.flat) ? "before" : false,
    ...(line.front && { pointBackgroundColor: "transparent" }),
    pointStyle: points.map((point) => (point.reached ? "crossRot" : shapeOf(line))),
    pointRadius: points.map((point) => radiusOf(line, point)),
    pointHoverRadius: line.front ? 10 : 7,
  };
}

function drawErrorBars(chart) {
  const { ctx, scales, chartArea } = chart;
  ctx.save();
  ctx.beginPath();
  ctx.rect(chartArea.left, chartArea.top, chartArea.width, chartArea.height);
  ctx.clip();
  for (const meta of chart.getSortedVisibleDatasetMetas()) {
    const { data, borderColor } = chart.data.datasets[meta.index];
    ctx.strokeStyle = borderColor;
    data.forEach(({ low, high }, i) => {
      if (low === null || low === undefined) return;
      const [bottom, top] = [low, high].map((y) => scales.y.getPixelForValue(y));
      ctx.stroke(new Path2D(`M${meta.data[i].x - 4} ${top}h8m-4 0V${bottom}m-4 0h8`));
    });
  }
  ctx.restore();
}

const isLog = (plot, axis) => plot.log && plot.scaled === axis;

// every measured x has a tick where there is room for it, and points at the ends stand free of the frame
function xAxis(plot, xs) {
  const log = isLog(plot, "x");
  const place = (x) => (log ? Math.log(x) : x);
  const positive = log ? xs.filter((x) => x > 0) : xs;
  const [first, last] = [positive[0], positive.at(-1)];
  const margin = (place(last) - place(first)) / (plot.round_ticks ? 8 : 25) || 0.5;
  return {
    type: log ? "logarithmic" : "linear",
    min: log ? first / Math.exp(margin) : first - margin,
    max: log ? last * Math.exp(margin) : last + margin,
    title: { display: true, text: plot.x },
    grid: {},
    border: {},
    ticks: { callback: plot.round_ticks ? tick : String, maxRotation: 0, autoSkip: plot.round_ticks },
    afterBuildTicks: (axis) => {
      if (plot.round_ticks) return;
      const apart = (32 / axis.chart.width) * (place(last) - place(first));
      const kept = [last];
      for (const x of positive.toReversed()) if (place(kept[0]) - place(x) >= apart) kept.unshift(x);
      axis.ticks = kept.map((value) => ({ value }));
    },
  };
}

function yAxis(plot) {
  const points = plot.lines.flatMap((line) => line.points);
  return {
    type: isLog(plot, "y") ? "logarithmic" : "linear",
    beginAtZero: plot.from_zero,
    grace: plot.round_ticks ? "8%" : 0,
    suggestedMin: Math.min(...points.map((point) => point.low ?? point.y)),
    suggestedMax: Math.max(...points.map((point) => point.high ?? point.y)),
    title: { display: true, text: plot.y },
    grid: {},
    border: {},
    ticks: { callback: tick, maxTicksLimit: 9 },
  };
}

// on a logarithmic axis the powers of ten; where it spans few, 2 and 5 between them, or all digits
function tick(value) {
  if (this.type === "linear") return String(+value.toPrecision(6));
  const digit = +(value / 10 ** Math.floor(Math.log10(value) + 1e-9)).toFixed(6);
  const span = this.max / this.min;
  const shown = span < 20 ? Number.isInteger(digit) : (span < 1000 ? [1, 2, 5] : [1]).includes(digit);
  if (!shown) return null;
  return value < 1e-3 || value >= 1e5 ? value.toExponential(0) : String(+value.toPrecision(3));
}

function draw(box) {
  const plot = plots[box.dataset.plot];
  const measured = plot.lines.filter((line) => !line.flat).flatMap((line) => line.points);
  const xs = [...new Set(measured.map((point) => point.x))].sort((a, b) => a - b);
  const across = xs.length > 1 ? xs : [xs[0] / 2, xs[0] * 2]; // where flat lines begin and end
  const canvas = box.querySelector("canvas");
  const chart = new Chart(canvas, {
    type: "line",
    data: { datasets: plot.lines.map((line) => dataset(line, across, plot.stepped)) },
    options: {
      animation: false,
      maintainAspectRatio: false,
      interaction: { mode: "nearest", axis: "x", intersect: false },
      scales: { x: xAxis(plot, xs), y: yAxis(plot) },
      plugins: {
        legend: { display: false },
        tooltip: {
          filter: (item) => !item.dataset.line.front,
          itemSort: (a, b) => b.parsed.y - a.parsed.y,
          usePointStyle: true,
          callbacks: {
            title: ([item]) => `${plot.x}: ${plot.round_ticks ? +item.raw.x.toPrecision(3) : item.raw.x}`,
            label: (item) => ` ${item.dataset.label}: ${item.raw.text}`,
          },
        },
      },
    },
    plugins: [{ id: "errorBars", beforeDatasetsDraw: drawErrorBars }],
  });
  charts.push(chart);
  box.prepend(legend(chart));
  const scale = toggle("scale", [`log ${plot.scaled}`], plot.log, (log) => {
    plot.log = log;
    Object.assign(chart.options.scales, { x: xAxis(plot, xs), y: yAxis(plot) });
    paint(chart);
  });
  box.closest("article").querySelector(".title").append(scale);
}

// a legend of buttons, which a keyboard reaches and a narrow screen wraps
function legend(chart) {
  const entries = chart.data.datasets.map(({ line }, i) => {
    const key = element("canvas", { width: 60, height: 28, ariaHidden: "true" });
    return toggle("", [key, line.name], true, (shown) => {
      chart.setDatasetVisibility(i, shown);
      chart.update();
    });
  });
  return element("div", { className: "legend" }, ...entries);
}

function toggle(className, children, pressed, apply) {
  const button = element("button", { type: "button", className, ariaPressed: String(pressed) }, ...children);
  button.addEventListener("click", () => {
    button.ariaPressed = String(button.ariaPressed !== "true");
    apply(button.ariaPressed === "true");
  });
  return button;
}

function drawKey(canvas, { line, borderColor }) {
  const ctx = canvas.getContext("2d");
  ctx.reset();
  ctx.scale(2, 2);
  Object.assign(ctx, { strokeStyle: borderColor, fillStyle: borderColor, lineWidth: 2 });
  ctx.setLineDash(dashOf(line));
  ctx.stroke(new Path2D("M0 7h30"));
  ctx.setLineDash([]);
  const options = { pointStyle: shapeOf(line), radius: line.flat ? 0 : line.front ? 6 : 4.5, borderWidth: 1.5 };
  if (line.front) ctx.fillStyle = "transparent";
  Chart.helpers.drawPoint(ctx, options, 15, 7);
}

// -------------------------------------------------------------------------------------------- images over the iterations

function slide(box) {
  const steps = frames[box.dataset.frames];
  const image = box.parentElement.querySelector("img");
  const { src: last } = image;
  const told = element("output");
  const range = element("input", { type: "range", min: 0, max: steps.length - 1, value: steps.length - 1 });
  range.ariaLabel = `iteration of ${box.dataset.of}`;
  const show = () => {
    const { iteration, data } = steps[range.value];
    image.src = data === null ? last : `data:image/webp;base64,${data}`;
    range.ariaValueText = told.value = `iteration ${iteration}`;
  };
  let timer = 0;
  const play = toggle("play", ["Play"], false, (playing) => {
    play.textContent = playing ? "Stop" : "Play";
    clearInterval(timer);
    if (!playing) return;
    timer = setInterval(() => {
      range.value = (+range.value + 1) % steps.length;
      show();
    }, 500);
  });
  range.addEventListener("input", show);
  show();
  box.append(play, range, told);
}

// ------------------------------------------------------------------------------------------------------ light and dark

function paint(chart) {
  const box = chart.canvas.closest(".plot");
  const { color: ink, borderTopColor: grid } = getComputedStyle(box);
  for (const set of chart.data.datasets) set.borderColor = set.backgroundColor = colourOf(set.line, ink);
  for (const axis of Object.values(chart.options.scales)) {
    axis.ticks.color = axis.title.color = ink;
    axis.grid.color = axis.border.color = grid;
  }
  box.querySelectorAll(".legend canvas").forEach((key, i) => drawKey(key, chart.data.datasets[i]));
  chart.update();
}

const dark = matchMedia("(prefers-color-scheme: dark)");
const theme = document.getElementById("theme");
let isDark = dark.matches;

function show(nowDark) {
  isDark = nowDark;
  document.documentElement.style.colorScheme = isDark ? "dark" : "light";
  theme.textContent = isDark ? "Light" : "Dark";
  charts.forEach(paint);
}

Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;
document.querySelectorAll("table").forEach(sortable);
document.querySelectorAll(".plot").forEach(draw);
document.querySelectorAll(".slider").forEach(slide);
theme.hidden = false;
theme.addEventListener("click", () => show(!isDark));
dark.addEventListener("change", () => show(dark.matches));
show(isDark);
