// Of the Hessian and the GGN: the upper eigenvalues and the density of one row at one snapshot.

const PLACES = 600;
const WIDTH = 0.03; // of the Gaussian, in units of the largest modulus, as in condexp figure density
const LEAST = 1e-6; // density, per largest modulus, below which nothing is drawn

const columnsOfMatrix = () => 2 * DATA.curvature.top + DATA.curvature.points.length + 1;
const columnsOfRow = () => DATA.curvature.matrices.length * columnsOfMatrix();

// The numbers of view.matrix of view.layer at the kept snapshot nearest to the chosen one.
function curvatureOf() {
  const { steps, matrices, rows, top, points } = DATA.curvature;
  const place = rows.indexOf(view.layer), wanted = DATA.steps[view.step];
  if (place < 0) return null;
  const row = steps.reduce((best, step, i) => (Math.abs(step - wanted) < Math.abs(steps[best] - wanted) ? i : best), 0);
  const first = (row * rows.length + place) * columnsOfRow() + matrices.indexOf(view.matrix) * columnsOfMatrix();
  const part = (from, num) => [...curvature.subarray(first + from, first + from + num)];
  return { step: steps[row], values: part(0, top), errors: part(top, top), masses: part(2 * top, points.length), scale: part(2 * top + points.length, 1)[0] };
}

const keptAt = (step) => (step === DATA.steps[view.step] ? "" : ` (kept at step ${step}, not at this snapshot)`);

function drawUpper(m) {
  const found = curvatureOf(), known = found?.values.filter((v) => !Number.isNaN(v)) ?? [];
  $("spectrum-text").textContent = "";
  if (!found) return nothing("plot-spectrum", "No eigenvalues of this matrix of this layer are kept in this page.");
  if (!known.length) return nothing("plot-spectrum", `No eigenvalue is known here: ${written(m, view.step, view.layer)}.`);
  const ks = known.map((_, i) => i + 1);
  const hover = known.map((v, i) => `λ<sub>${i + 1}</sub> = ${format(v)} ± ${format(found.errors[i])}`);
  const trace = { type: "scatter", mode: "lines+markers", x: ks, y: known, hoverinfo: "text", hovertext: hover, error_y: { array: found.errors, thickness: 1.2 }, line: { color: COLORS[0], width: 1.5 }, marker: { size: 5 } };
  plot("plot-spectrum", [trace], { xaxis: axis("number of the eigenvalue", { dtick: Math.ceil(ks.length / 10) }), yaxis: axis("λ", padded(known)) });
  $("spectrum-text").textContent = `${matrixOf(m.matrix).symbol}: the ${ks.length} largest eigenvalues, λ_max = ${format(known[0])} ± ${format(found.errors[0])}` + keptAt(found.step);
}

function drawDensity() {
  const shown = Boolean(DATA.curvature?.matrices.includes(view.matrix));
  $("density").hidden = !shown;
  if (!shown) return;
  const found = curvatureOf(), scale = found?.scale;
  $("density-text").textContent = "";
  if (!found) return nothing("plot-density", "No density of this matrix of this layer is kept in this page.");
  const measure = (quantity) => DATA.measures.find((each) => each.matrix === view.matrix && each.quantity === quantity);
  const there = DATA.curvature.points.map((x, i) => [x * scale, found.masses[i]]).filter(([, mass]) => mass > 0);
  if (!there.length || !(scale > 0)) return nothing("plot-density", `No density is known here: ${written(measure("lambda_max"), view.step, view.layer)}.`);
  const width = WIDTH * scale, [low, high] = ends(there.map(([x]) => x));
  const places = Array.from({ length: PLACES }, (_, i) => low - 3 * width + ((high - low + 6 * width) * i) / (PLACES - 1));
  const density = places.map((place) => there.reduce((sum, [x, mass]) => sum + mass * Math.exp(-0.5 * ((place - x) / width) ** 2), 0) / (Math.sqrt(2 * Math.PI) * width));
  const drawn = density.map((d) => (d > LEAST / scale ? d : null));
  plot("plot-density", [{ type: "scatter", mode: "lines", x: places, y: drawn, line: { color: COLORS[0], width: 1.5 }, hovertemplate: "λ = %{x:.3g}: %{y:.3g}<extra></extra>" }], { xaxis: axis("λ"), yaxis: logAxis("density ρ(λ)", density.filter((d) => d > LEAST / scale)) });
  const share = measure("negative_share");
  $("density-text").textContent = `negative share ${written(share, view.step, view.layer)} ${interval(share, view.step, view.layer)}` + keptAt(found.step);
}

// λ_max of the network's Hessian, and the edge of stability.
function drawSharpness() {
  const found = DATA.sharpness;
  $("sharpness").hidden = !found;
  if (!found) return;
  const { step, lambda_max, error, edge, label } = found;
  const ends = (sign) => lambda_max.map((v, i) => (v === null || error[i] === null ? null : v + sign * error[i]));
  const band = (y, more) => ({ type: "scatter", mode: "lines", x: step, y, line: { width: 0 }, hoverinfo: "skip", showlegend: false, ...more });
  const traces = [band(ends(1), {}), band(ends(-1), { fill: "tonexty", fillcolor: "rgba(86,180,233,0.3)" })];
  const hover = step.map((s, i) => `step ${s}: <b>${format(lambda_max[i])}</b> ± ${format(error[i])}`);
  traces.push({ type: "scatter", mode: step.length > 60 ? "lines" : "lines+markers", x: step, y: lambda_max, name: "λ<sub>max</sub>", hoverinfo: "text", hovertext: hover, line: { color: COLORS[0], width: 1.6 }, marker: { size: 5 } });
  if (label) traces.push({ type: "scatter", mode: "lines", x: step, y: edge, name: label, hovertemplate: `${label} = %{y:.4g}<extra></extra>`, line: { color: COLORS[1], dash: "dash", width: 1.4 } });
  const all = [...lambda_max, ...edge];
  plot("plot-sharpness", traces, { xaxis: axis("step"), yaxis: wide(all) && lambda_max.every((v) => v === null || v > 0) ? logAxis("λ<sub>max</sub> of the Hessian", all) : axis("λ<sub>max</sub> of the Hessian") });
}
