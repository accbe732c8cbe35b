// The page of a sweep: curves by condition.

const shade = (i) => COLORS[i % COLORS.length];
const dash = (i) => DASHES[Math.floor(i / COLORS.length) % DASHES.length];

async function prepareGrid() {
  fill($("value"), DATA.choices.map((each) => [each.key, each.name]), kept.read("value") ?? DATA.choices[0]?.key);
  if (!$("value").value && DATA.choices.length) $("value").value = DATA.choices[0].key;
  $("value").addEventListener("change", () => { kept.write("value", $("value").value); drawGrid(); });
}

function mean(curves, logarithmic) {
  const steps = curves[0].step.filter((step) => curves.every((curve) => curve.step.includes(step)));
  const value = steps.map((step) => {
    const each = curves.map((curve) => curve.value[curve.step.indexOf(step)]);
    const sum = each.reduce((total, v) => total + (logarithmic ? Math.log(v) : v), 0) / each.length;
    return logarithmic ? Math.exp(sum) : sum;
  });
  return { step: steps, value };
}

function drawGrid() {
  const key = $("value").value, name = DATA.choices.find((each) => each.key === key)?.name;
  const shown = DATA.curves.filter((curve) => curve.of[key]);
  if (!shown.length) return nothing("plot-curves", "No run has an evaluation or a snapshot yet.");
  const all = shown.flatMap((curve) => curve.of[key].value), logarithmic = !key.endsWith("_error") && wide(all);
  const traces = [];
  DATA.conditions.forEach((condition, i) => {
    const own = shown.filter((curve) => curve.condition === i);
    const line = { color: shade(i), dash: dash(i) };
    for (const { run, of } of own) {
      const { step, value, bounds } = of[key];
      traces.push({ type: "scatter", mode: step.length > 1 ? "lines" : "markers", x: step, y: value, opacity: own.length > 1 ? 0.55 : 1, line: { ...line, width: own.length > 1 ? 1 : 2 }, hovertemplate: `${plain(run)}<br>${plain(condition)}<br>step %{x}: %{y:.4g}<extra></extra>` });
      if (bounds.length) traces.push({ type: "scatter", mode: "markers", x: bounds.map((b) => step[b]), y: bounds.map((b) => value[b]), hoverinfo: "skip", marker: { symbol: "triangle-up-open", size: 9, color: shade(i) } });
    }
    if (own.length > 1) {
      const middle = mean(own.map((curve) => curve.of[key]), logarithmic);
      traces.push({ type: "scatter", mode: "lines", x: middle.step, y: middle.value, line: { ...line, width: 3 }, hovertemplate: `mean of ${own.length}<br>${plain(condition)}<br>step %{x}: %{y:.4g}<extra></extra>` });
    }
  });
  plot("plot-curves", traces, { height: 420, showlegend: false, xaxis: axis("step"), yaxis: logarithmic ? logAxis(plain(name), all) : axis(plain(name), { rangemode: key.endsWith("_error") ? "tozero" : "normal" }) });
  $("conditions").replaceChildren(...DATA.conditions.map((condition, i) => {
    const item = element("li", "");
    const style = { solid: "solid", dash: "dashed", dot: "dotted" }[dash(i)] ?? "double";
    item.append(element("i", "", { class: "line", style: `border-top: 3px ${style} ${shade(i)}` }));
    item.append(condition);
    return item;
  }));
}

start(prepareGrid, drawGrid);
