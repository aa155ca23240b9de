// Rollouts: what was asked, what was answered, and what it was worth.

/** Prompts that are put on the page at a time. */
const PAGE = 12;

/** `right`, `wrong`, or `ungraded` where the first reward, which decides, abstains. */
function verdict({ parts, reward }) {
  const value = parts[run.decides] ?? reward;
  if (value === null) return "ungraded";
  return value > 0.5 ? "right" : "wrong";
}

const SYMBOLS = { right: "✓", wrong: "✗", ungraded: "?" };
const isRight = (completion) => verdict(completion) === "right";
const isWrong = (completion) => verdict(completion) === "wrong";
const ANSWERS = { all: () => true, right: isRight, wrong: isWrong };
const GROUPS = {
  all: () => true,
  right: (group) => group.completions.every(isRight),
  wrong: (group) => group.completions.every(isWrong),
  mixed: (group) => group.completions.some(isRight) && group.completions.some(isWrong),
};

/** Completions with a reward in these bounds, of which NaN is none. One that abstains has no reward. */
function between(low, high) {
  if (Number.isNaN(low) && Number.isNaN(high)) return () => true;
  return ({ reward }) => {
    const value = { inf: Infinity, "-inf": -Infinity }[reward] ?? reward;
    return typeof value === "number" && !(value < low) && !(value > high);
  };
}

function select(label, choices, changed) {
  const options = choices.map(([value, text]) => element("option", { value }, text));
  const made = element("select", { onchange: changed }, ...options);
  return { made, field: element("label", {}, element("span", {}, label), made) };
}

function input(label, attributes, changed) {
  const made = element("input", { ...attributes, oninput: changed });
  return { made, field: element("label", {}, element("span", {}, label), made) };
}

/** The rewards of a completion, its parts first. */
function worth(completion) {
  const parts = Object.entries(completion.parts);
  const rows = [
    ["reward", completion.reward === null ? "abstains" : shown(completion.reward)],
    ...parts.map(([name, value]) => [name, value === null ? "abstains" : shown(value)]),
    ["advantage", completion.advantage === null ? "none" : signed(completion.advantage)],
    ["tokens", String(completion.log_probs.length)],
  ];
  return element(
    "dl",
    { class: "worth" },
    ...rows.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))),
    completion.truncated ? element("div", { class: "cut" }, element("dt", {}, "cut off at the length limit")) : null,
  );
}

function unweighted(completion) {
  if (!completion.pieces)
    return sentence("This rollout was written without the texts of its tokens, so it has no tint.");
  if (!completion.credit_weights) return sentence("No credit weights: this completion was not trained on.");
  return null;
}

function card(group, answers) {
  const { figure, mark } = picture(group);
  const shownCompletion = element("div", { class: "completion" });
  const chosen = group.completions
    .map((completion, place) => ({ completion, place }))
    .filter(({ completion }) => answers(completion));
  const chips = chosen.map(({ completion, place }) =>
    element(
      "button",
      {
        type: "button",
        class: `chip ${verdict(completion)}`,
        "aria-pressed": "false",
        "aria-label": `Completion ${place}: ${verdict(completion)}, reward ${shown(completion.reward)}`,
        onclick: () => look(completion, place),
      },
      `${SYMBOLS[verdict(completion)]} ${shown(completion.reward)}`,
    ),
  );
  const look = (completion, place) => {
    chips.forEach((chip, number) => chip.setAttribute("aria-pressed", String(chosen[number].place === place)));
    unread();
    mark(completion.evidence);
    shownCompletion.replaceChildren(worth(completion), tokens(completion), unweighted(completion) ?? "");
  };
  const right = group.completions.filter(isRight).length;
  const made = element(
    "article",
    { class: "card", "aria-label": `Step ${group.step}, prompt ${group.index}` },
    element(
      "header",
      {},
      element("h3", {}, `Step ${group.step} · prompt ${group.index}`),
      element("p", {}, `${right} of ${group.completions.length} right`),
    ),
    figure,
    element(
      "div",
      { class: "talk" },
      element("p", { class: "question" }, group.question),
      element("p", { class: "answer" }, element("span", {}, "wanted"), " ", element("b", {}, group.answer ?? "–")),
      element("div", { class: "chips", role: "group", "aria-label": "Completions" }, ...chips),
      shownCompletion,
    ),
  );
  look(chosen[0].completion, chosen[0].place);
  return made;
}

/** The scale of a tint, or the one value that all tokens have. */
function scale(name, from, to) {
  if (from === to) return element("div", { class: `scale ${name}` }, `every ${name} is ${shown(from)}`);
  const [least, most] = [`≤ ${shown(from)}`, `≥ ${shown(to)}`];
  return element(
    "div",
    { class: `scale ${name}` },
    element("span", {}, least),
    element("i"),
    element("span", {}, most),
  );
}

/** What is painted over texts and pictures, for all cards at once. */
function paint(section) {
  const tints = [
    ["weight", "Weight", HAS_WEIGHTS],
    ["alignment", "Alignment", HAS_ALIGNMENT],
    ["none", "None", true],
  ];
  const radios = tints.map(([value, label, there]) =>
    element(
      "label",
      {},
      element("input", {
        type: "radio",
        name: "tint",
        value,
        disabled: !there,
        onchange: () => {
          section.dataset.tint = value;
        },
      }),
      element("span", {}, label),
    ),
  );
  const first = tints.findIndex(([, , there]) => there);
  radios[first].firstChild.checked = true;
  section.dataset.tint = tints[first][0];
  const switches = [
    ["outlines", "Regions"],
    ["cells", "Cells"],
  ].map(([name, label]) => {
    section.dataset[name] = "on";
    const changed = (event) => {
      section.dataset[name] = event.target.checked ? "on" : "off";
    };
    return element(
      "label",
      { class: "switch" },
      element("input", { type: "checkbox", checked: true, onchange: changed }),
      ` ${label}`,
    );
  });
  const missing = [
    HAS_WEIGHTS ? null : "no credit weights of single tokens",
    HAS_ALIGNMENT ? null : "no alignment of tokens with the picture",
    run.groups.some((group) => group.regions) ? null : "no regions of the pictures",
  ].filter((text) => text);
  return [
    element(
      "div",
      { class: "paint" },
      element("fieldset", { class: "tints" }, element("legend", {}, "Tint"), ...radios),
      scale("weight", LIGHT, HEAVY),
      scale("alignment", -FAR, FAR),
      run.groups.some((group) => group.regions) ? element("div", { class: "switches" }, ...switches) : null,
    ),
    missing.length > 0 ? sentence(`These rollouts hold ${missing.join(", ")}.`) : null,
  ];
}

function rollouts() {
  const section = document.getElementById("rollouts");
  if (run.groups.length === 0) {
    section.append(sentence("This run has written no rollouts: log.rollouts_every says how often it does."));
    return;
  }
  const list = element("div", { class: "cards" });
  const count = element("p", { class: "count", role: "status" });
  const more = element("button", { type: "button", class: "more", onclick: () => grow() });
  let found = [];
  /** Whether a completion is one to show. */
  let wanted = () => true;
  const numbersOfSteps = [...new Set(run.groups.map((group) => group.step))];
  const changed = () => filter();
  const step = select(
    "Step",
    [["", "all"], ...numbersOfSteps.map((number) => [String(number), String(number)])],
    changed,
  );
  const kind = select(
    "Prompts",
    [
      ["all", "all"],
      ["mixed", "mixed"],
      ["right", "all right"],
      ["wrong", "all wrong"],
    ],
    changed,
  );
  const answers = select(
    "Completions",
    [
      ["all", "all"],
      ["right", "right"],
      ["wrong", "wrong"],
    ],
    changed,
  );
  const bound = { type: "number", step: "any", placeholder: "any" };
  const [lowest, highest] = [input("Reward from", bound, changed), input("Reward to", bound, changed)];
  const place = input("Prompt no.", { type: "number", min: "0", inputmode: "numeric", placeholder: "any" }, changed);
  const words = input("Text", { type: "search", placeholder: "question or answer", class: "words" }, changed);

  function holds(group, text) {
    const texts = [group.question, group.answer ?? "", ...group.completions.map((completion) => completion.text)];
    return texts.some((part) => part.toLowerCase().includes(text));
  }

  function filter() {
    const text = words.made.value.trim().toLowerCase();
    const rewarded = between(lowest.made.valueAsNumber, highest.made.valueAsNumber);
    const answered = ANSWERS[answers.made.value];
    wanted = (completion) => answered(completion) && rewarded(completion);
    found = run.groups.filter(
      (group) =>
        (step.made.value === "" || group.step === Number(step.made.value)) &&
        (place.made.value === "" || group.index === Number(place.made.value)) &&
        GROUPS[kind.made.value](group) &&
        group.completions.some(wanted) &&
        (text === "" || holds(group, text)),
    );
    list.replaceChildren();
    grow();
  }

  function grow() {
    const from = list.childElementCount;
    list.append(...found.slice(from, from + PAGE).map((group) => card(group, wanted)));
    const left = found.length - list.childElementCount;
    const prompts = `${found.length} ${found.length === 1 ? "prompt" : "prompts"}`;
    const below = left > 0 ? `, ${list.childElementCount} of them below` : "";
    count.textContent = found.length === 0 ? "No prompt is like that." : prompts + below;
    more.hidden = left === 0;
    more.textContent = `Show ${Math.min(left, PAGE)} more`;
  }

  section.append(
    element(
      "p",
      {},
      "One card a prompt, with one of its completions at a time. Right means that " +
        `${run.decides ?? "the reward"}, which decides, is above one half.`,
    ),
    element(
      "form",
      { class: "filters", role: "search", onsubmit: (event) => event.preventDefault() },
      ...[step, kind, answers, place, lowest, highest, words].map(({ field }) => field),
    ),
    ...paint(section).filter((part) => part !== null),
  );
  if (run.groups.length < run.groups_written) {
    section.append(
      sentence(
        `To stay small this page holds ${run.groups.length} of the ${run.groups_written} prompts, ` +
          "evenly from every step. All of them are in the directory rollouts of the run.",
      ),
    );
  }
  section.append(count, list, more);
  filter();
}

rollouts();
