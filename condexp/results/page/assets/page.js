"use strict";
// What all pages share: packed numbers, how they are written, plots in the page's colours, the theme.

const DATA = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
// Okabe & Ito (2008), distinguishable under every common colour blindness; the light ones of them on a dark ground.
const PALETTES = {
  light: ["#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9"],
  dark: ["#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#D55E00"],
};
let COLORS = PALETTES.light;
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash"];

async function unpack(name) {
  const text = atob($("blob-" + name).textContent);
  const bytes = Uint8Array.from(text, (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// The numbers of pack_numbers: [..., rows, columns], each row the difference from the one before.
function numbers(bytes, rows, columns) {
  const num = bytes.length / 4;
  const words = new Uint32Array(2 * num);
  for (let i = 0; i < num; i++) {
    const step = bytes[i] | (bytes[num + i] << 8) | (bytes[2 * num + i] << 16) | (bytes[3 * num + i] << 24);
    const before = Math.floor(i / columns) % rows ? words[2 * (i - columns) + 1] : 0;
    words[2 * i + 1] = before + step;
  }
  return new Float64Array(words.buffer);
}

// As format_number of the command line: three significant digits.
function format(value, mark = "") {
  if (mark === "≥" || mark === "≈") return `${mark} ${format(value)}`;
  if (mark) return mark;
  if (value === null || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value < 0 ? "-∞" : "∞";
  const size = Math.abs(value);
  if (value === 0 || (size >= 1e-2 && size < 999.5)) return String(Number(value.toPrecision(3)));
  if (size >= 999.5 && size < 99999.5) return String(Math.round(DATA.digits < 5 ? Number(value.toPrecision(3)) : value));
  const [mantissa, exponent] = value.toExponential(2).split("e");
  return Number(mantissa) + "e" + Number(exponent);
}

// Plotly reads tags in texts: names of layers and runs have none.
const plain = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function fill(select, options, chosen) {
  select.replaceChildren(...options.map(([value, text]) => element("option", text, { value })));
  select.value = chosen;
}

// ── What was chosen outlives a page that is written anew. ──
const kept = {
  read(name) {
    try { return JSON.parse(sessionStorage.getItem(name + location.pathname)); } catch { return null; }
  },
  write(name, value) {
    try { sessionStorage.setItem(name + location.pathname, JSON.stringify(value)); } catch { /* not allowed here */ }
  },
};

// ── Plots ──
let draw = () => {};

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
}

function axis(title, more = {}) {
  const ticks = { exponentformat: more.type === "log" ? "power" : "e" };
  return {
    title: { text: title, standoff: 6 }, gridcolor: colour("grid"), linecolor: colour("line"),
    zeroline: false, automargin: true, tickfont: { size: 11 }, ...ticks, ...more,
  };
}

// A logarithmic axis labels powers of ten, also 2 and 5 where it spans few, and whole numbers where hardly any.
function logAxis(title, values, more = {}) {
  const [low, high] = ends(values.filter((v) => v > 0)).map(Math.log10);
  const decades = high - low;
  if (decades < 1.4) {
    const tickvals = logTicks(low - 0.3, high + 0.3, [1, 1.5, 2, 3, 5, 7]).map((t) => 10 ** t);
    return axis(title, { type: "log", ...more, tickvals, ticktext: tickvals.map((v) => format(v)) });
  }
  return axis(title, { type: "log", ...more, dtick: decades > 2 ? Math.ceil(decades / 6) : "D2" });
}

function logTicks(low, high, factors, every = 1) {
  const ticks = [];
  for (let e = Math.floor(low); e <= high; e += every) for (const f of factors) ticks.push(e + Math.log10(f));
  return ticks.filter((t) => t >= low && t <= high);
}

// The smallest and the largest finite number; spread arguments would be too many for the stack.
const ends = (values) => values.reduce(([low, high], v) => (v !== null && Number.isFinite(v) ? [Math.min(low, v), Math.max(high, v)] : [low, high]), [Infinity, -Infinity]);

function layout(more) {
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: colour("ink"), size: 12, family: "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif" },
    margin: { l: 48, r: 12, t: 12, b: 40 }, height: 320,
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, font: { size: 11 }, itemwidth: 30 },
    hoverlabel: { bgcolor: colour("card"), bordercolor: colour("line"), font: { color: colour("ink") } },
    hovermode: "closest", ...more,
  };
}

const CONFIG = {
  responsive: true, displaylogo: false, doubleClick: "reset",
  modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d"],
};

const plot = (id, traces, more) => Plotly.react($(id), traces, layout(more), CONFIG);

function nothing(id, text) {
  if ($(id).data) Plotly.purge($(id));
  $(id).replaceChildren(element("p", text, { class: "note" }));
}

const wide = (values) => {
  const [low, high] = ends(values.filter((v) => v > 0));
  return high > 3 * low;
};

async function loadPlotly() {
  const script = document.createElement("script");
  script.textContent = new TextDecoder().decode(await unpack("plotly"));
  document.head.append(script);
}

// ── Theme: the system's, light, dark ──
const THEMES = ["system", "light", "dark"];

function applyTheme(theme) {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  $("theme").textContent = "Theme: " + theme;
}

let theme = kept.read("theme") ?? "system";
applyTheme(theme);
$("theme").hidden = false;
$("theme").addEventListener("click", () => {
  theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
  kept.write("theme", theme);
  applyTheme(theme);
  draw();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw());

if (DATA.refresh_seconds) setTimeout(() => location.reload(), 1000 * DATA.refresh_seconds);

async function start(prepare, drawAll) {
  if (!$("blob-plotly")) return;
  await loadPlotly();
  await prepare();
  draw = () => {
    COLORS = PALETTES[colour("palette")];
    drawAll();
  };
  draw();
  document.documentElement.dataset.ready = "yes";
}
