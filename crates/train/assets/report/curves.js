// Learning curves: one small chart a topic.

/** `[title, [label, metric]...]`; a name that ends in * stands for the kinds of pictures. */
const CHARTS = {
  supervised: [
    ["Loss", [["loss", "loss/supervised"]]],
    [
      "Accuracy on new training examples",
      [
        ["all", "train/accuracy"],
        ["", "train/accuracy/*"],
      ],
    ],
    ["Gradient norm", [["norm", "grad/norm"]]],
    ["Learning rate", [["rate", "learning_rate"]]],
  ],
  reinforcement: [
    [
      "Mean reward",
      [
        ["all", "reward/mean"],
        ["", "reward/mean/*"],
      ],
    ],
    [
      "Held-out accuracy",
      [
        ["with picture", "eval/accuracy"],
        ["blind", "eval/blind_accuracy"],
      ],
    ],
    [
      "Loss",
      [
        ["policy", "loss/policy"],
        ["KL", "loss/kl"],
      ],
    ],
    ["KL to the reference", [["per token", "kl/mean"]]],
    ["Entropy", [["nats per token", "entropy/mean"]]],
    ["Gradient norm", [["norm", "grad/norm"]]],
    ["Completion length", [["tokens", "completion/length_mean"]]],
    ["Share of completions cut off", [["share", "completion/truncated_fraction"]]],
    ["Share of groups with equal rewards", [["share", "reward/zero_std_fraction"]]],
    [
      "Share of tokens clipped",
      [
        ["low", "clip/low_fraction"],
        ["high", "clip/high_fraction"],
      ],
    ],
    ["Mean credit weight", [["weight", "credit/weight_mean"]]],
    [
      "Seconds a step",
      [
        ["all", "time/step_s"],
        ["sampling", "time/sample_s"],
        ["update", "time/update_s"],
      ],
    ],
    ["Learning rate", [["rate", "learning_rate"]]],
  ],
};
/** Weight of the newest value in a smoothed curve: it looks back over about ten steps. */
const NEWEST = 0.2;

/** The steps and columns of a phase; the evaluations around reinforcement learning are its ends. */
function series(name) {
  const { steps, columns } = phase(name);
  if (name !== "reinforcement") return { steps, columns };
  const first = phase("after_supervised") ?? phase("before");
  const last = phase("after_reinforcement");
  const joined = [first && { ...first, steps: [0] }, { steps, columns }, last].filter((part) => part);
  const evaluated = [...new Set(joined.flatMap((part) => Object.keys(part.columns)))];
  const all = { steps: joined.flatMap((part) => part.steps), columns: {} };
  for (const metric of evaluated) {
    all.columns[metric] = joined.flatMap((part) => part.columns[metric] ?? part.steps.map(() => null));
  }
  return all;
}

/** The lines of a chart that have values, as `[label, values]`. */
function lines(wanted, columns) {
  const kinds = run.pictures.length > 1 ? run.pictures : [];
  return wanted
    .flatMap(([label, metric]) =>
      metric.endsWith("*") ? kinds.map((kind) => [kind, metric.replace("*", kind)]) : [[label, metric]],
    )
    .map(([label, metric]) => ({ label, metric, values: columns[metric] }))
    .filter(({ values }) => values?.some((value) => value !== null));
}

function smoothed(values) {
  let mean = null;
  return values.map((value) => {
    if (value === null) return null;
    mean = mean === null ? value : mean + NEWEST * (value - mean);
    return mean;
  });
}

function draw({ place, found, steps, columns }, smooth) {
  const rows = steps.map((_, row) => row).filter((row) => found.some(({ values }) => values[row] !== null));
  const at = (values) => rows.map((row) => values[row]);
  const sparse = rows.length <= 40;
  // An interval is one of the values as they were measured.
  const ends = ["_low", "_high"].map((end) => columns[found[0].metric + end]);
  const measured = ends.every((end) => end);
  const curves = found.map(({ label, values }, row) => ({
    data: at(smooth && !measured ? smoothed(values) : values),
    options: {
      label,
      stroke: style(`--curve-${row}`),
      width: row === 0 ? 2 : 1.25,
      points: { show: sparse, size: 4 },
    },
  }));
  if (smooth && !measured) {
    const faint = { stroke: `${style("--curve-0")}50`, width: 1, points: { show: false } };
    curves.push({ data: at(found[0].values), options: faint });
  }
  const bands = measured ? [band(curves, ends.map(at), `${style("--curve-0")}28`)] : [];
  return chart(place, at(steps), curves, bands);
}

function curves() {
  const section = document.getElementById("curves");
  const drawn = [];
  const smooth = element("input", { type: "checkbox" });
  const label = element("label", { class: "smooth" }, smooth, " Smooth: a moving average over about ten steps");
  section.append(label);
  for (const [name, title] of [
    ["reinforcement", "Reinforcement learning"],
    ["supervised", "Warm-up"],
  ]) {
    if (name === "supervised" && run.supervised_steps === 0) continue;
    section.append(element("h3", {}, title));
    if (!phase(name)) {
      section.append(sentence("No step of this phase has been taken."));
      continue;
    }
    const { steps, columns } = series(name);
    const grid = element("div", { class: "charts" });
    section.append(grid);
    for (const [topic, wanted] of CHARTS[name]) {
      const found = lines(wanted, columns);
      if (found.length === 0) continue;
      const place = element("div", { class: "plot" });
      grid.append(element("figure", { "aria-label": topic }, element("figcaption", {}, topic), place));
      drawn.push({ place, found, steps, columns, draw: (chart) => draw(chart, smooth.checked) });
    }
  }
  label.hidden = drawn.length === 0;
  smooth.addEventListener("change", charts(section, drawn));
}

curves();
