// A chart of values by step: what every page draws it with.

const HEIGHT = 170;
/** Between ticks of steps, of which there are no parts. */
const WHOLE = [1, 10, 100, 1e3, 1e4, 1e5].flatMap((power) => [power, 2 * power, 5 * power]);
/** Nothing but zeros would get a scale up to 100. */
const heights = (_, low, high) => (low === 0 && high === 0 ? [0, 1] : uPlot.rangeNum(low, high, 0.1, true));

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** Adds the ends of an interval, which have no line of their own, to the curves; returns what is between them. */
function band(curves, ends, fill) {
  const none = { stroke: "transparent", width: 0, points: { show: false } };
  curves.push(...ends.map((data) => ({ data, options: none })));
  return { series: [curves.length, curves.length - 1], fill };
}

/**
 * Draws curves, `{data, options}` each, those first that have a label. The legend has their values at the cursor, or
 * the last ones.
 */
function chart(place, steps, curves, bands, { height = HEIGHT, format = shown } = {}) {
  const axis = { font: "11px system-ui, sans-serif", stroke: style("--quiet"), ticks: { show: false } };
  const grid = { stroke: style("--line"), width: 1 };
  const last = steps.length - 1;
  const legend = (made) => {
    if (made.cursor.idx === null || made.cursor.left < 0) made.setLegend({ idx: last });
  };
  const named = curves.filter(({ options }) => options.label).length;
  const value = (_, number) => format(number);
  const made = new uPlot(
    {
      width: place.clientWidth,
      height,
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
        ...curves.map(({ options }) => ({ value, spanGaps: true, ...options })),
      ],
      hooks: { ready: [legend], setCursor: [legend] },
    },
    [steps, ...curves.map(({ data }) => data)],
    place,
  );
  // The rows of the legend behind the named ones belong to lines that explain themselves.
  [...made.root.querySelectorAll(".u-series")].slice(named + 1).forEach((row) => row.remove());
  return made;
}

/**
 * Draws charts, whose `draw` makes a `plot` in their `place`, and keeps them as wide and as light or dark as the page.
 * Returns what draws them anew.
 */
function charts(section, drawn) {
  const redraw = () =>
    drawn.forEach((chart) => {
      chart.plot?.destroy();
      chart.plot = chart.draw(chart);
    });
  redraw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  const resized = new ResizeObserver(() => {
    drawn.forEach(({ plot, place }) => {
      if (place.clientWidth !== plot.width) plot.setSize({ width: place.clientWidth, height: plot.height });
    });
  });
  resized.observe(section);
  return redraw;
}
