// Small charts as SVG: lines and a band over the last parts, each with what it shows in words.
const SPACE = "http://www.w3.org/2000/svg";
const WIDTH = 320, HEIGHT = 120, LEFT = 44, RIGHT = 6, TOP = 8, BOTTOM = 20;

function shape(name, attributes, text) {
  const made = document.createElementNS(SPACE, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// values: numbers in the order of the parts; band: {low, high} of as many; level: {value, name}, a line across.
// logarithmic: for evidence, which multiplies. says: what the chart shows, in words, for those who do not see it.
export function chart(target, { values, band, level, lines = [], logarithmic = false, write, says }) {
  if (!values.length) { target.replaceChildren(); return; }
  const scale = logarithmic ? Math.log : (value) => value;
  const every = [...values, ...(band ? [...band.low, ...band.high] : []), ...(level ? [level.value] : []), ...lines.map((line) => line.value)];
  const low = Math.min(...every.map(scale), logarithmic ? Infinity : 0);
  const high = Math.max(...every.map(scale)), span = high - low || 1;
  const x = (i) => LEFT + (WIDTH - LEFT - RIGHT) * (values.length > 1 ? i / (values.length - 1) : 1);
  const y = (value) => HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (scale(value) - low) / span;
  const path = (numbers) => numbers.map((value, i) => `${x(i).toFixed(1)},${y(value).toFixed(1)}`);
  const drawing = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": says });
  if (band) {
    const corners = [...path(band.high), ...path(band.low).reverse()];
    // One part has a band of no width: it is shown as one that lasts.
    if (values.length === 1) corners.splice(0, 2, `${LEFT},${y(band.high[0])}`, `${x(0)},${y(band.high[0])}`, `${x(0)},${y(band.low[0])}`, `${LEFT},${y(band.low[0])}`);
    drawing.append(shape("polygon", { points: corners.join(" "), class: "band" }));
  }
  for (const line of [...(level ? [{ ...level, className: "level" }] : []), ...lines]) {
    drawing.append(shape("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(line.value), y2: y(line.value), class: line.className || "guide" }));
  }
  drawing.append(shape("polyline", { points: path(values).join(" "), class: "course" }));
  drawing.append(shape("circle", { cx: x(values.length - 1), cy: y(values[values.length - 1]), r: 3, class: "now" }));
  const ends = logarithmic ? [Math.exp(low), Math.exp(high)] : [low, high];
  ends.forEach((value) => drawing.append(shape("text", { x: LEFT - 5, y: y(value) + 4, "text-anchor": "end" }, write(value))));
  const parts = values.length === 1 ? "the last part" : `the last ${values.length} parts`;
  drawing.append(shape("text", { x: LEFT, y: HEIGHT - 4 }, parts), shape("text", { x: WIDTH - RIGHT, y: HEIGHT - 4, "text-anchor": "end" }, "now"));
  target.replaceChildren(drawing);
}
