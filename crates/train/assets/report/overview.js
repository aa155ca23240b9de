// The head of the page: what was run, and what came of it.

/** What an algorithm is made of, where it is no published one. */
function composition({ advantage, ratio, surrogate, aggregation, kl }) {
  const name = (choice) => choice.name ?? (typeof choice === "string" ? choice : Object.keys(choice)[0]);
  const parts = [
    `${name(advantage)} advantage`,
    `${ratio} ratio`,
    name(surrogate),
    name(aggregation),
    kl ? "KL" : null,
  ];
  return parts
    .filter((part) => part !== null)
    .join(", ")
    .replaceAll("_", " ");
}

function steps(name, planned) {
  const taken = phase(name)?.steps.at(-1) ?? 0;
  return taken === planned ? `${taken}` : `${taken} of at most ${planned}`;
}

function headline() {
  const stages = [
    ["before", "before training"],
    ["after_supervised", "after warm-up"],
    ["after_reinforcement", "after reinforcement"],
  ];
  const measured = stages.filter(([name]) => latest(name, "eval/accuracy") !== null);
  const figures = measured.map(([name, label]) =>
    element("div", {}, element("dd", {}, percent(latest(name, "eval/accuracy"))), element("dt", {}, label)),
  );
  if (figures.length === 0) return null;
  return element(
    "div",
    {},
    element("p", { class: "kicker" }, "Held-out accuracy"),
    element("dl", { class: "headline" }, ...figures),
  );
}

function overview() {
  const facts = [
    ["Model", run.model.split("/").at(-1), run.model],
    ["Algorithm", run.preset?.replaceAll("_", " ") ?? composition(run.algorithm)],
    ["Credit", run.credit],
    ["Seed", run.seed],
    ["Warm-up steps", run.supervised_steps > 0 ? steps("supervised", run.supervised_steps) : null],
    ["Reinforcement steps", steps("reinforcement", run.reinforcement_steps)],
    ["Wall time", run.outcome === null ? null : duration(run.outcome.seconds)],
    ["State", run.outcome === null ? "not complete" : "complete"],
    ["firesight", run.version],
  ].filter(([, value]) => value !== null);
  const fact = ([name, value, whole]) =>
    element("div", {}, element("dt", {}, name), element("dd", whole ? { title: whole } : {}, value));
  const configuration = element(
    "details",
    {},
    element("summary", {}, "Resolved configuration"),
    element("pre", { tabindex: "0" }, run.config),
  );
  document.title = `${run.name} · firesight`;
  document
    .getElementById("overview")
    .replaceChildren(
      element(
        "div",
        { class: "title" },
        element("div", {}, element("p", { class: "kicker" }, "Run"), element("h1", {}, run.name)),
        headline(),
      ),
      element("dl", { class: "facts" }, ...facts.map(fact)),
      configuration,
    );
}

overview();
