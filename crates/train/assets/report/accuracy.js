// The table of held-out accuracies.

const MEASURED = [
  ["before", "Before"],
  ["after_supervised", "After warm-up"],
  ["after_reinforcement", "After RL"],
];

/** What was measured, in rows by topic: `[title, [label, metric]...]`. */
function measures(names) {
  const prefix = "eval/accuracy/";
  const kinds = names.filter((name) => name.startsWith(prefix)).map((name) => name.slice(prefix.length));
  const row = (kind) => [kind, prefix + kind];
  const drawn = names.filter((name) => /^eval\/(mean|pass)_at_\d+$/.test(name));
  const number = (name) => Number(name.split("_").at(-1));
  drawn.sort((a, b) => a.localeCompare(b, "en", { numeric: true }) || number(a) - number(b));
  return [
    [
      "All questions",
      [
        ["with picture", "eval/accuracy"],
        ["blind", "eval/blind_accuracy"],
      ],
    ],
    ["Kind of picture", kinds.filter((kind) => run.pictures.includes(kind)).map(row)],
    [run.pictures.length > 0 ? "Kind of question" : "Kind", kinds.filter((kind) => !run.pictures.includes(kind)).map(row)],
    ["Drawn answers", drawn.map((name) => [name.slice("eval/".length).replace("_at_", "@"), name])],
  ];
}

function accuracyCell(stage, metric) {
  const mean = latest(stage, metric);
  if (mean === null) return element("td", {}, "–");
  const [low, high] = [latest(stage, `${metric}_low`), latest(stage, `${metric}_high`)];
  const cell = element("td", { class: "share" }, element("span", {}, percent(mean)));
  cell.style.setProperty("--share-of", mean);
  if (low !== null && high !== null) {
    cell.append(element("small", {}, `${(100 * low).toFixed(1)} – ${percent(high)}`));
  }
  return cell;
}

function accuracy() {
  const section = document.getElementById("accuracy");
  const stages = MEASURED.filter(([name]) => phase(name));
  if (stages.length === 0) {
    section.append(sentence("Nothing has been measured yet: held-out questions are first asked after the warm-up."));
    return;
  }
  const names = [...new Set(stages.flatMap(([name]) => Object.keys(phase(name).columns)))];
  const head = element("tr", {}, element("td"), ...stages.map(([, label]) => element("th", { scope: "col" }, label)));
  const bodies = measures(names).map(([title, rows]) => {
    const known = rows.filter(([, metric]) => names.includes(metric));
    if (known.length === 0) return null;
    const top = element("tr", {}, element("th", { scope: "rowgroup", colspan: String(stages.length + 1) }, title));
    const row = ([label, metric]) =>
      element(
        "tr",
        {},
        element("th", { scope: "row" }, label),
        ...stages.map(([stage]) => accuracyCell(stage, metric)),
      );
    return element("tbody", {}, top, ...known.map(row));
  });
  section.append(
    element(
      "p",
      {},
      `Shares of ${run.questions} questions that training never sees, greedy answers, with 95 % intervals. ` +
        "Blind: the same questions about a blank picture.",
    ),
    element("div", { class: "scrolls" }, element("table", {}, element("thead", {}, head), ...bodies)),
  );
}

accuracy();
