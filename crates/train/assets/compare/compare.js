// What a comparison says: its settings, its table, its curves.

/** Colours of variants; those of a second round are dashed. */
const COLOURS = 8;
/** More lines get wider charts, and no bands: nobody could tell them apart. */
const FEW = 4;
const colour = (row) => style(`--curve-${row % COLOURS}`);
/** Tenths; nothing is minus zero. */
const tenths = (value) => (Math.round(10 * value) / 10 + 0).toFixed(1).replace("-", "−");
const points = (share) => tenths(100 * share);
const signedPoints = (share) => points(share).replace(/^(?!−)/, "+");
const hundredths = (value) => value.toFixed(2);
const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

function overview() {
  const { steps, questions, seeds } = run.findings;
  const facts = [
    ["Model", run.model.split("/").at(-1), run.model],
    ["Seeds", seeds.length > 0 ? seeds.join(", ") : "none yet"],
    ["Steps", String(steps)],
    ["Held-out questions", String(questions)],
    ["firesight", run.version],
  ];
  const fact = ([name, value, whole]) =>
    element("div", {}, element("dt", {}, name), element("dd", whole ? { title: whole } : {}, value));
  document.title = `${run.name}, compared · firesight`;
  const title = [element("p", { class: "kicker" }, "Comparison"), element("h1", {}, run.name)];
  document.getElementById("overview").replaceChildren(
    element("div", { class: "title" }, element("div", {}, ...title)),
    element("dl", { class: "facts" }, ...facts.map(fact)),
    element(
      "details",
      {},
      element("summary", {}, "Resolved configuration, and what each way has of its own"),
      element("pre", { tabindex: "0" }, run.config),
    ),
  );
}

function withError(mean, shown, error = points) {
  if (mean === null) return [];
  const { standard_error } = mean;
  return [shown(mean.mean), standard_error === null ? null : element("small", {}, ` ± ${error(standard_error)}`)];
}

function interval({ difference }, row, reach) {
  const cell = element("td", { class: "interval" });
  const error = difference?.standard_error ?? null;
  if (difference === null || error === null || reach === 0) return cell;
  const place = (share) => `${50 + (50 * share) / reach}%`;
  const line = element("div", {}, element("span", { class: "reach" }), element("span", { class: "mean" }));
  for (const [name, value] of [
    ["--mark", `var(--curve-${row % COLOURS})`],
    ["--from", place(difference.mean - 2 * error)],
    ["--over", `${(100 * 2 * error) / reach}%`],
    ["--at", place(difference.mean)],
  ]) {
    line.style.setProperty(name, value);
  }
  cell.append(line);
  return cell;
}

function table() {
  const { rows, steps, questions, seeds, warm_up } = run.findings;
  const ungraded = rows.filter((row) => row.ungraded > 0).map((row) => `${row.name} ${row.ungraded}`);
  const ends = rows
    .filter(({ difference }) => difference !== null)
    .map(({ difference }) => Math.abs(difference.mean) + 2 * (difference.standard_error ?? 0));
  const reach = Math.max(0, ...ends);
  // With one base for all it is said once.
  const bases = [...new Set(rows.map(({ base }) => base).filter((base) => base !== null))];
  const minus = bases.length === 1 ? `minus ${bases[0]}` : "difference";
  const heads = ["", "accuracy in %", `${minus}, points`, "± 2 standard errors", "p", "cost", "seeds"];
  const head = (text, place) => element("th", { scope: "col", class: place === 3 ? "interval" : "" }, text);
  const cell = (...children) => element("td", {}, ...children);
  const row = (found, place) => {
    const mark = element("span", { class: "mark" });
    mark.style.background = `var(--curve-${place % COLOURS})`;
    const { name, base, accuracy, difference, p, cost } = found;
    const from = bases.length > 1 && base !== null ? element("small", {}, ` minus ${base}`) : null;
    return element(
      "tr",
      {},
      element("th", { scope: "row" }, mark, name, from),
      cell(...withError(accuracy, points)),
      cell(...withError(difference, signedPoints)),
      interval(found, place, reach),
      cell(p === null ? "" : p < 0.001 ? "<0.001" : p.toFixed(3)),
      cell(...withError(cost, hundredths, hundredths)),
      cell(String(found.seeds.length)),
    );
  };
  const first = element(
    "tr",
    {},
    element("th", { scope: "row" }, "after the warm-up"),
    cell(...withError(warm_up, points)),
    cell(),
    element("td", { class: "interval" }),
    cell(),
    cell(),
    cell(String(seeds.length)),
  );
  document.getElementById("table").append(
    element(
      "p",
      {},
      `${plural(seeds.length, "seed")}: from one warm-up each, all ways went on with the same prompts for ` +
        `${plural(steps, "step")}. Accuracy of greedy answers to ${plural(questions, "held-out question")}, ` +
        "± standard error over the seeds. ",
      element("strong", {}, "A difference smaller than twice its standard error means nothing. "),
      "Differences are paired over the seeds; p is that of a paired t-test, two-sided, not corrected for several " +
        "tests. Cost: seconds of a step, measuring left out, relative to what is subtracted." +
        (ungraded.length > 0 ? ` Answers that could not be graded, and count as not right: ${ungraded.join(", ")}.` : ""),
    ),
    element(
      "div",
      { class: "scrolls" },
      element(
        "table",
        {},
        element("thead", {}, element("tr", {}, ...heads.map(head))),
        element("tbody", {}, first, ...rows.map(row)),
      ),
    ),
  );
}

/** A line with a band of one standard error for each variant; a `row` is its place in the table. */
function drawCurves({ place, lines, format }) {
  const steps = [...new Set(lines.flatMap((line) => line.steps))].sort((a, b) => a - b);
  const at = (line, values) => steps.map((step) => values[line.steps.indexOf(step)] ?? null);
  const curves = lines.map((line) => ({
    data: at(line, line.means),
    options: {
      label: line.name,
      stroke: colour(line.row),
      width: 2,
      dash: line.row >= COLOURS ? [6, 4] : [],
      points: { show: steps.length <= 40, size: 5 },
    },
  }));
  const few = run.findings.rows.length <= FEW;
  const bands = (few ? lines : []).map((line) => {
    const end = (sign) => line.means.map((mean, index) => mean + sign * line.errors[index]);
    return band(curves, [at(line, end(-1)), at(line, end(1))], `${colour(line.row)}20`);
  });
  return chart(place, steps, curves, bands, { height: few ? 240 : 340, format });
}

function curves() {
  const section = document.getElementById("curves");
  const row = (name) => run.findings.rows.findIndex((found) => found.name === name);
  const drawn = [];
  const few = run.findings.rows.length <= FEW;
  const grid = element("div", { class: few ? "charts" : "charts many" });
  for (const { title, about, percent, lines } of run.charts) {
    if (lines.length === 0) continue;
    const place = element("div", { class: "plot" });
    const caption = element("figcaption", {}, title, element("small", {}, about));
    grid.append(element("figure", { "aria-label": title }, caption, place));
    const format = percent ? (value) => (value === null ? "–" : tenths(value)) : shown;
    drawn.push({ place, format, lines: lines.map((line) => ({ ...line, row: row(line.name) })), draw: drawCurves });
  }
  if (drawn.length === 0) {
    section.append(sentence("No run is complete yet."));
    return;
  }
  const about = few ? "bands are one standard error to both sides" : "a click on a name hides its line";
  section.append(element("p", {}, `Means over the seeds; ${about}.`), grid);
  charts(section, drawn);
}

overview();
table();
curves();
