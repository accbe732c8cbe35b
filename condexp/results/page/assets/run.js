// The page of one run.

const NOT_NUMBERS = { "∞": "#D55E00", rows: "#9A9A9A", zero: "#F0E442", unreliable: "#CC79A7", nonfinite: "#E69F00", incomplete: "#7A7A7A", "–": "transparent", 0: "#C9CDD2" };
const MOST_TRIANGLES = 1500;
const ZERO = DATA.marks.length; // a 0 on a logarithmic scale
let measures, codes, eigenvalues, curvature;
const S = DATA.steps.length, L = DATA.layers.length; // the network as a whole is a layer here, the last
const view = { matrix: "kfac", quantity: "kappa", p: DATA.fractions[0] ?? null, layer: DATA.first_layer, step: S - 1 };

async function prepareRun() {
  if (!$("matrix")) return;
  measures = numbers(await unpack("measures"), S, L);
  codes = await unpack("marks");
  if (DATA.spectra) eigenvalues = numbers(await unpack("spectra"), DATA.spectra.steps.length, DATA.spectra.columns);
  if (DATA.curvature) curvature = numbers(await unpack("curvature"), DATA.curvature.steps.length, DATA.curvature.rows.length * columnsOfRow());
  const before = kept.read("view");
  if (before) {
    const following = before.atEnd ?? true;
    Object.assign(view, before, { layer: Math.min(before.layer, L - 1), step: following ? S - 1 : Math.min(before.step, S - 1) });
  }
  $("step").max = S - 1;
  const bind = (id, read) => $(id).addEventListener(id === "step" ? "input" : "change", (event) => { read(event.target.value); changed(); });
  bind("matrix", (value) => { view.matrix = value; });
  bind("quantity", (value) => { view.quantity = value; });
  bind("p", (value) => { view.p = Number(value); });
  bind("layer", (value) => { view.layer = Number(value); });
  bind("step", (value) => { view.step = Number(value); });
  $("plot-map").addEventListener("keydown", move);
}

function changed() {
  kept.write("view", { ...view, atEnd: view.step === S - 1 });
  drawLayers();
}

function move(event) {
  const [layer, step] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] ?? [0, 0];
  if (!layer && !step) return;
  event.preventDefault();
  const rows = rowsOf(view.matrix), row = rows.indexOf(view.layer) + layer;
  view.layer = rows[Math.min(rows.length - 1, Math.max(0, row))];
  view.step = Math.min(S - 1, Math.max(0, view.step + step));
  changed();
}

const matrixOf = (key) => DATA.matrices.find((each) => each.key === key);

// The layers that have a matrix; what is of the layer itself, all of them.
function rowsOf(key) {
  const matrix = matrixOf(key) ?? { of_layers: true, of_network: false };
  return [...DATA.layers.keys()].filter((l) => (l < DATA.num_layers ? matrix.of_layers : matrix.of_network));
}

// The choices that there are, after one of them changed.
function settle() {
  const matrices = [...DATA.matrices.map((m) => [m.key, `${m.symbol}: ${m.name}`]), ["", "the layer itself"]];
  if (!matrices.some(([key]) => key === view.matrix)) view.matrix = matrices[0][0];
  const own = DATA.measures.filter((m) => m.matrix === view.matrix);
  const names = new Map(own.map((m) => [m.quantity, text(m.name)]));
  if (!names.has(view.quantity)) view.quantity = names.has("kappa") ? "kappa" : own[0].quantity;
  const chosen = own.filter((m) => m.quantity === view.quantity);
  const fractions = chosen.filter((m) => m.p !== null).map((m) => m.p);
  if (fractions.length && !fractions.includes(view.p)) view.p = fractions[0];
  fill($("matrix"), matrices, view.matrix);
  fill($("quantity"), [...names], view.quantity);
  fill($("p"), fractions.length ? fractions.map((p) => [p, p]) : [["", "–"]], fractions.length ? view.p : "");
  $("p").disabled = !fractions.length;
  const rows = rowsOf(view.matrix);
  if (!rows.includes(view.layer)) view.layer = rows.includes(DATA.first_layer) ? DATA.first_layer : rows[0];
  fill($("layer"), rows.map((l) => [l, DATA.layers[l]]), view.layer);
  $("step").value = view.step;
  $("step").setAttribute("aria-valuetext", "step " + DATA.steps[view.step]);
  $("step-text").textContent = DATA.steps[view.step];
  return chosen.find((m) => m.p === null || m.p === view.p);
}

const text = (html) => html.replaceAll(/<sub>(.*?)<\/sub>/g, "_$1");
const at = (array, step, layer) => measures[(array * S + step) * L + layer];
const hasNumber = (mark) => !mark || mark === "≥" || mark === "≈";
const markAt = (m, step, layer) => DATA.marks[codes[(DATA.measures.indexOf(m) * S + step) * L + layer]].sign;
const valueAt = (m, step, layer) => at(DATA.measures.indexOf(m), step, layer);
const written = (m, step, layer) => format(valueAt(m, step, layer), markAt(m, step, layer));

function interval(m, step, layer) {
  const mark = markAt(m, step, layer);
  if (!hasNumber(mark)) return "";
  if (m.error !== undefined) return `± ${format(at(m.error, step, layer))}`;
  if (m.high === undefined) return "";
  const [low, high] = [at(m.low, step, layer), at(m.high, step, layer)];
  return Number.isNaN(low) ? "" : `[${format(low)}, ${format(high)}]`;
}

function symbol(m) {
  const matrix = matrixOf(m.matrix);
  const name = m.quantity === "kappa" ? `κ<sub>${m.p}</sub>` : m.name.split(", ")[0];
  return matrix ? `${name} of ${matrix.symbol}` : name;
}

function drawLayers() {
  if (!measures) return;
  const m = settle();
  drawMap(m);
  drawSpectrum(m);
  drawDensity();
  drawLine(m);
  listNumbers();
}

// ── The heat map ──
function cells(m, layers) {
  const rows = { z: [], kind: [], hover: [], bounds: [], plain: [], estimates: 0 };
  for (const [row, l] of layers.entries()) {
    const z = [], kind = [], hover = [];
    for (let s = 0; s < S; s++) {
      const value = valueAt(m, s, l), mark = markAt(m, s, l);
      const zero = m.log && value <= 0 && !mark;
      const number = hasNumber(mark) && !zero;
      z.push(number ? (m.log ? Math.log10(value) : value) : null);
      kind.push(number ? null : (zero ? ZERO : DATA.marks.findIndex((each) => each.sign === mark)));
      if (number) rows.plain.push(value);
      if (mark === "≥") rows.bounds.push([s, row]);
      if (mark === "≈") rows.estimates += 1;
      hover.push(`${plain(DATA.layers[l])}<br>step ${DATA.steps[s]}<br>${symbol(m)}: <b>${written(m, s, l)}</b> ${interval(m, s, l)}`);
    }
    rows.z.push(z); rows.kind.push(kind); rows.hover.push(hover);
  }
  return rows;
}

function drawMap(m) {
  const layers = rowsOf(m.matrix), num = layers.length;
  const rows = cells(m, layers), height = Math.max(220, Math.min(820, 22 * num + 120));
  const signs = [...DATA.marks.map((each) => each.sign), "0"];
  const scale = signs.flatMap((sign, i) => [i, i + 1].map((end) => [end / signs.length, NOT_NUMBERS[sign] ?? "transparent"]));
  const shared = { type: "heatmap", hoverinfo: "text", hovertext: rows.hover, xgap: S > 60 ? 0 : 1, ygap: num > 60 ? 0 : 1 };
  const traces = [
    { ...shared, z: rows.z, colorscale: "Viridis", colorbar: bar(m, rows.plain), showscale: rows.plain.length > 0, ...range(m, rows.plain) },
    { ...shared, z: rows.kind.map((row) => row.map((k) => (k === null ? null : k + 0.5))), colorscale: scale, zmin: 0, zmax: signs.length, showscale: false },
  ];
  if (rows.bounds.length && rows.bounds.length <= MOST_TRIANGLES) {
    traces.push({
      type: "scatter", mode: "markers", x: rows.bounds.map(([s]) => s), y: rows.bounds.map(([, l]) => l), hoverinfo: "skip", showlegend: false,
      marker: { symbol: "triangle-up-open", size: Math.min(9, Math.max(4, 400 / S)), color: "#ffffff", line: { color: "#ffffff", width: 1.4 } },
    });
  }
  const every = Math.max(1, Math.ceil(num / Math.max(1, Math.floor((height - 110) / 15))));
  const named = [...layers.keys()].filter((row) => row % every === 0);
  const here = layers.indexOf(view.layer);
  const box = { type: "rect", x0: view.step - 0.5, x1: view.step + 0.5, y0: here - 0.5, y1: here + 0.5, line: { color: colour("focus"), width: 2.5 } };
  const columns = Math.max(2, Math.floor($("plot-map").clientWidth / 90));
  const marked = [...DATA.steps.keys()].filter((s) => s % Math.ceil(S / columns) === 0);
  plot("plot-map", traces, {
    height, shapes: [box], margin: { l: 20, r: 12, t: 24, b: 48 },
    // Beside a colour bar above it, plotly misplaces the title of a low plot's axis.
    annotations: [{ text: "step of the snapshot", showarrow: false, xref: "paper", yref: "paper", x: 0.5, y: 0, yanchor: "top", yshift: -22 }],
    xaxis: axis("", { tickvals: marked, ticktext: marked.map((s) => DATA.steps[s]), range: [-0.5, S - 0.5], showgrid: false, automargin: false }),
    yaxis: axis(every > 1 ? `layers (1 in ${every} named)` : "", { tickvals: named, ticktext: named.map((row) => plain(DATA.short[layers[row]])), range: [num - 0.5, -0.5], showgrid: false }),
  }).then((drawn) => {
    drawn.removeAllListeners("plotly_click");
    drawn.on("plotly_click", ({ points: [point] }) => { view.step = point.x; view.layer = layers[point.y]; changed(); });
  });
  $("plot-map").setAttribute("aria-label", `${text(symbol(m))}, ${num} ${num === 1 ? "row" : "rows"} at ${S} snapshots`);
  $("readout").textContent = `${DATA.layers[view.layer]}, step ${DATA.steps[view.step]}: ${text(symbol(m))} = ${written(m, view.step, view.layer)} ${interval(m, view.step, view.layer)}`;
  listKinds(rows);
}

function range(m, values) {
  if (!values.length) return {};
  const [low, high] = m.log ? ends(values).map(Math.log10) : ends(values);
  const margin = Math.max(0, (m.log ? 0.1 : 0.05 * (Math.abs(high) || 1)) - (high - low) / 2);
  return { zmin: low - margin, zmax: high + margin };
}

function bar(m, values) {
  const { zmin, zmax } = range(m, values);
  const made = { orientation: "h", y: 1.0, yanchor: "bottom", x: 0.5, len: 1, thickness: 9, outlinewidth: 0, title: { text: symbol(m), side: "top", font: { size: 12 } }, tickfont: { size: 11 } };
  if (!m.log || !values.length) return made;
  const span = zmax - zmin;
  const tickvals = span > 2.5 ? logTicks(zmin, zmax, [1], Math.max(1, Math.ceil(span / 7))) : logTicks(zmin, zmax, span > 1 ? [1, 3] : [1, 1.5, 2, 3, 5, 7]);
  return tickvals.length < 2 ? { ...made, tickvals: [zmin, zmax], ticktext: [zmin, zmax].map((t) => format(10 ** t)) } : { ...made, tickvals, ticktext: tickvals.map((t) => format(10 ** t)) };
}

function listKinds(rows) {
  const counts = new Map();
  for (const row of rows.kind) for (const kind of row) if (kind !== null) counts.set(kind, (counts.get(kind) ?? 0) + 1);
  const items = [...counts].map(([kind, num]) => {
    const sign = kind === ZERO ? "0" : DATA.marks[kind].sign;
    const item = element("li", "");
    item.append(element("i", "", { style: `background:${NOT_NUMBERS[sign]}` }));
    item.append(`${num} cells: ` + (kind === ZERO ? "0 or below, which has no place on a logarithmic scale" : DATA.marks[kind].text || "– no number"));
    return item;
  });
  const shown = rows.bounds.length <= MOST_TRIANGLES;
  for (const [sign, icon, num] of [["≥", shown ? "△" : "≥", rows.bounds.length], ["≈", "≈", rows.estimates]]) {
    if (!num) continue;
    const item = element("li", "");
    item.append(element("i", icon, { class: "sign" }));
    item.append(`${num} cells: ${DATA.marks.find((each) => each.sign === sign).text}${sign === "≥" && !shown ? "; too many to be marked here" : ""}`);
    items.unshift(item);
  }
  $("kinds").replaceChildren(...items);
}

// ── One layer ──
function spectrumOf(matrix) {
  const groups = DATA.spectra?.groups ?? [];
  const group = groups.find((each) => each.matrix === matrix && each.layers.includes(view.layer));
  if (!group) return null;
  const steps = DATA.spectra.steps, wanted = DATA.steps[view.step];
  const row = steps.reduce((best, step, i) => (Math.abs(step - wanted) < Math.abs(steps[best] - wanted) ? i : best), 0);
  const num = group.kept ? group.kept.length : group.length;
  const first = row * DATA.spectra.columns + group.offset + group.layers.indexOf(view.layer) * num;
  return { values: [...eigenvalues.subarray(first, first + num)], numbers: (group.kept ?? [...Array(num).keys()]).map((k) => k + 1), length: group.length, step: steps[row], thinned: Boolean(group.kept) };
}

function drawSpectrum(m) {
  if (DATA.curvature?.matrices.includes(m.matrix)) return drawUpper(m);
  const wanted = view.matrix === "kfac" ? ["input", "grad_output"] : [view.matrix || "input"];
  const found = wanted.map((matrix) => [matrix, spectrumOf(matrix)]).filter(([, spectrum]) => spectrum);
  if (!found.length) {
    $("spectrum-text").textContent = "";
    return nothing("plot-spectrum", DATA.spectra ? "No spectrum of this matrix of this layer is kept in this page." : "No spectra were saved: analysis.save_spectra=true keeps them.");
  }
  const traces = [], words = [], shapes = [];
  const row = DATA.steps.indexOf(found[0][1].step);
  found.forEach(([matrix, { values, numbers: ks, length, step, thinned }], i) => {
    const shown = values.map((v) => (v > 0 ? v : null)), sign = matrixOf(matrix).symbol;
    traces.push({ type: "scatter", mode: length > 200 ? "lines" : "lines+markers", x: ks, y: shown, name: `${sign}, step ${step}`, line: { color: COLORS[i], width: 1.5 }, marker: { size: 4, symbol: ["circle", "square"][i] }, hovertemplate: "λ<sub>%{x}</sub> = %{y:.3g}<extra></extra>" });
    const floor = DATA.measures.find((each) => each.matrix === matrix && each.quantity === "noise_floor");
    const level = row < 0 ? NaN : valueAt(floor, row, view.layer);
    if (level > 0) traces.push({ type: "scatter", mode: "lines", x: [1, length], y: [level, level], name: `${sign}, noise floor`, line: { color: COLORS[i], dash: "dash", width: 1 }, hovertemplate: `noise floor ${format(level)}<extra></extra>` });
    const zeros = values.filter((v) => v === 0).length;
    words.push(`${sign}: d = ${length}` + (zeros ? `, ${thinned ? "some" : zeros} eigenvalues are 0` : "") + `, λ_max = ${format(values[0])}, noise floor ${format(level)}`);
    if (m.quantity === "kappa" && matrix === view.matrix) {
      const k = Math.min(length, Math.max(1, Math.ceil(m.p * length * (1 - 1e-12))));
      shapes.push({ type: "line", x0: k, x1: k, yref: "paper", y0: 0, y1: 1, line: { color: colour("soft"), dash: "dot", width: 1.2 } });
    }
  });
  const all = traces.flatMap((trace) => trace.y);
  plot("plot-spectrum", traces, { shapes, xaxis: logAxis("number of the eigenvalue", [1, Math.max(...found.map(([, f]) => f.length))]), yaxis: logAxis("λ", all) });
  $("spectrum-text").textContent = words.join("; ") + (found[0][1].step === DATA.steps[view.step] ? "" : ` (spectra are kept at step ${found[0][1].step}, not at this snapshot)`);
}

function drawLine(m) {
  const values = [], bounds = [], low = [], high = [];
  for (let s = 0; s < S; s++) {
    const mark = markAt(m, s, view.layer), number = hasNumber(mark);
    values.push(number ? valueAt(m, s, view.layer) : null);
    bounds.push(mark === "≥" ? values[s] : null);
    const [from, to] = number ? within(m, s) : [NaN, NaN];
    low.push(Number.isFinite(from) ? from : null);
    high.push(Number.isFinite(to) ? to : null);
  }
  if (values.every((v) => v === null || (m.log && v <= 0))) return nothing("plot-layer", `${text(symbol(m))} of this layer has no number to draw: ${written(m, view.step, view.layer)} at this snapshot.`);
  const traces = [];
  if (low.some((v) => v !== null)) {
    const band = (y, more) => ({ type: "scatter", mode: "lines", x: DATA.steps, y, line: { width: 0 }, hoverinfo: "skip", showlegend: false, ...more });
    traces.push(band(high.map((h, s) => h ?? low[s]), {}), band(low, { fill: "tonexty", fillcolor: "rgba(86,180,233,0.3)" }));
  }
  const hover = DATA.steps.map((step, s) => `step ${step}: <b>${written(m, s, view.layer)}</b> ${interval(m, s, view.layer)}`);
  traces.push({ type: "scatter", mode: "lines+markers", x: DATA.steps, y: values, showlegend: false, hoverinfo: "text", hovertext: hover, line: { color: COLORS[0], width: 1.5 }, marker: { size: S > 60 ? 3 : 5 } });
  traces.push({ type: "scatter", mode: "markers", x: DATA.steps, y: bounds, hoverinfo: "skip", showlegend: false, marker: { symbol: "triangle-up-open", size: 11, color: COLORS[1], line: { width: 1.6 } } });
  const now = { type: "line", x0: DATA.steps[view.step], x1: DATA.steps[view.step], yref: "paper", y0: 0, y1: 1, line: { color: colour("focus"), width: 1.2 } };
  plot("plot-layer", traces, { shapes: [now], xaxis: axis("step"), yaxis: m.log && wide(values) ? logAxis(symbol(m), values) : axis(symbol(m), padded(values)) });
}

// The ends of the interval that a number of this layer lies in; on a logarithmic axis one that is not above 0 has no place.
function within(m, s) {
  if (m.high !== undefined) return [at(m.low, s, view.layer), at(m.high, s, view.layer)];
  if (m.error === undefined) return [NaN, NaN];
  const value = valueAt(m, s, view.layer), error = at(m.error, s, view.layer);
  return [m.log && value <= error ? value : value - error, value + error];
}

// One value alone still has a place on its axis.
function padded(values) {
  const [low, high] = ends(values);
  return high - low > 1e-3 * Math.abs(high) ? {} : { range: [low - 0.1 * (Math.abs(low) || 1), high + 0.1 * (Math.abs(high) || 1)] };
}

function listNumbers() {
  const own = DATA.measures.filter((m) => m.matrix === view.matrix);
  const matrix = matrixOf(view.matrix);
  const name = DATA.layers[view.layer];
  $("numbers").caption.textContent = `${matrix ? matrix.symbol + " of " : ""}${name} (${DATA.types[view.layer]}) at step ${DATA.steps[view.step]}`;
  $("numbers").tBodies[0].replaceChildren(...own.map((m) => {
    const row = element("tr", "");
    const [short, ...rest] = (m.p === null ? text(m.name) : `κ_${m.p}`).split(", ");
    const label = element("th", short, { scope: "row" });
    if (rest.length) label.append(element("small", rest.join(", ")));
    row.append(label, element("td", written(m, view.step, view.layer), { class: "num" }), element("td", interval(m, view.step, view.layer), { class: "num" }));
    return row;
  }));
}

// ── Training ──
function drawCurves() {
  const curve = (name, label, i, more = {}) => {
    const { step, value } = DATA.curves[name];
    const look = { line: { color: more.color ?? COLORS[i], width: 1.6, dash: DASHES[more.dash ?? 0] }, marker: { size: 5 }, opacity: more.opacity ?? 1, yaxis: more.yaxis };
    return value.length ? [{ type: "scatter", mode: more.lines || step.length > 40 ? "lines" : "lines+markers", x: step, y: value, name: label, hovertemplate: `${label}: %{y:.4g}<br>step %{x}<extra></extra>`, ...look }] : [];
  };
  const losses = [...curve("loss", "batch", 0, { lines: true, color: colour("soft"), opacity: 0.6 }), ...curve("train_loss", "training set", 0), ...curve("test_loss", "test set", 1, { dash: 1 })];
  const all = losses.flatMap((trace) => trace.y);
  if (losses.length) plot("plot-loss", losses, { xaxis: axis("step"), yaxis: wide(all) ? logAxis("loss", all) : axis("loss") });
  else nothing("plot-loss", "No training step yet, or none that was logged.");
  const errors = [...curve("train_error", "training set", 0), ...curve("test_error", "test set", 1, { dash: 1 })];
  const rates = curve("lr", "learning rate", 2, { lines: true, dash: 2, yaxis: "y2" });
  if (!errors.length && !rates.length) return nothing("plot-error", "No evaluation yet.");
  const right = { ...axis("learning rate"), overlaying: "y", side: "right", showgrid: false, rangemode: "tozero", exponentformat: "e", tickmode: "auto", nticks: 5 };
  plot("plot-error", [...errors, ...rates], { margin: { l: 48, r: 52, t: 12, b: 40 }, xaxis: axis("step"), yaxis: axis("error (%)", { rangemode: "tozero" }), ...(rates.length ? { yaxis2: right } : {}) });
}

start(prepareRun, () => { drawCurves(); drawSharpness(); drawLayers(); });
