// What the other scripts build with. All text of a run gets onto the page as a text node.

const run = JSON.parse(document.getElementById("data").textContent);

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name in made && typeof value !== "string") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

const sentence = (text) => element("p", { class: "nothing" }, text);

const percent = (share) => `${(100 * share).toFixed(1)}\u00a0%`;

/** A number in as many digits as one can take in; the names of those that are not finite, and a dash for none. */
function shown(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return { inf: "∞", "-inf": "−∞" }[value] ?? String(value);
  const size = Math.abs(value);
  if (value === 0) return "0";
  if (size >= 1e5 || size < 1e-3) return value.toExponential(1).replace("e+", "e").replaceAll("-", "−");
  return String(Number(size >= 100 ? value.toFixed(0) : value.toPrecision(3))).replace("-", "−");
}

const signed = (value) => (value > 0 ? "+" : "") + shown(value);

function duration(seconds) {
  if (seconds < 60) return `${seconds.toFixed(0)} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

const phase = (name) => run.metrics.find((found) => found.name === name);

/** The last value of a metric in a phase. */
const latest = (name, metric) => phase(name)?.columns[metric]?.findLast((value) => value !== null) ?? null;
