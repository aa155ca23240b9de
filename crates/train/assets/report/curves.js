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
const HEIGHT = 170;
/** Between ticks of steps, of which there are no parts. */
const WHOLE = [1, 10, 100, 1e3, 1e4, 1e5].flatMap((power) => [power, 2 * power, 5 * power]);
/** Nothing but zeros would get a scale up to 100. */
const heights = (_, low, high) => (low === 0 && high === 0 ? [0, 1] : uPlot.rangeNum(low, high, 0.1, true));

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

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function draw(place, { found, steps, columns, smooth }) {
  const rows = steps.map((_, row) => row).filter((row) => found.some(({ values }) => values[row] !== null));
  const at = (values) => rows.map((row) => values[row]);
  const axis = { font: "11px system-ui, sans-serif", stroke: style("--quiet"), ticks: { show: false } };
  const grid = { stroke: style("--line"), width: 1 };
  const sparse = rows.length <= 40;
  const format = (_, value) => shown(value);
  // An interval is one of the values as they were measured.
  const ends = ["_low", "_high"].map((end) => columns[found[0].metric + end]);
  const measured = ends.every((end) => end);
  const curves = found.map(({ label, values }, row) => ({
    data: at(smooth && !measured ? smoothed(values) : values),
    options: {
      label,
      value: format,
      spanGaps: true,
      stroke: style(`--curve-${row}`),
      width: row === 0 ? 2 : 1.25,
      points: { show: sparse, size: 4 },
    },
  }));
  if (smooth && !measured) {
    const faint = { stroke: `${style("--curve-0")}50`, width: 1, spanGaps: true, points: { show: false } };
    curves.push({ data: at(found[0].values), options: faint });
  }
  const bands = [];
  if (measured) {
    const none = { stroke: "transparent", width: 0, points: { show: false }, spanGaps: true };
    curves.push(...ends.map((end) => ({ data: at(end), options: none })));
    bands.push({ series: [curves.length, curves.length - 1], fill: `${style("--curve-0")}28` });
  }
  const last = rows.length - 1;
  const legend = (chart) => {
    if (chart.cursor.idx === null || chart.cursor.left < 0) chart.setLegend({ idx: last });
  };
  const named = curves.filter(({ options }) => options.label).length;
  const chart = new uPlot(
    {
      width: place.clientWidth,
      height: HEIGHT,
      bands,
      padding: [8, 16, 0, 0],
      cursor: { y: false, drag: { x: false, y: false } },
      legend: { markers: { width: 0, fill: (made, row) => made.series[row].stroke(made, row) } },
      scales: { x: { time: false }, y: { range: heights } },
      axes: [
        { ...axis, size: 26, grid: { show: false }, space: 60, incrs: WHOLE },
        { ...axis, size: 48, grid, space: 34, values: (_, ticks) => ticks.map(shown) },
      ],
      series: [
        { label: "step", value: (_, step) => (step === null ? "–" : String(step)) },
        ...curves.map(({ options }) => options),
      ],
      hooks: { ready: [legend], setCursor: [legend] },
    },
    [at(steps), ...curves.map(({ data }) => data)],
    place,
  );
  // The rows of the legend behind the named ones belong to lines that explain themselves.
  [...chart.root.querySelectorAll(".u-series")].slice(named + 1).forEach((row) => row.remove());
  return chart;
}

function curves() {
  const section = document.getElementById("curves");
  const drawn = [];
  const smooth = element("input", { type: "checkbox" });
  const redraw = (chart) => {
    chart.plot?.destroy();
    chart.plot = draw(chart.place, { ...chart, smooth: smooth.checked });
  };
  smooth.addEventListener("change", () => drawn.forEach(redraw));
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
      drawn.push({ place, found, steps, columns, plot: null });
    }
  }
  label.hidden = drawn.length === 0;
  drawn.forEach(redraw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn.forEach(redraw));
  const resized = new ResizeObserver(() => {
    drawn.forEach(({ plot, place }) => {
      if (place.clientWidth !== plot.width) plot.setSize({ width: place.clientWidth, height: HEIGHT });
    });
  });
  resized.observe(section);
}

curves();
