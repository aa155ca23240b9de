// The text of a completion, token by token.

const numbers = (values) => (values ?? []).filter((value) => typeof value === "number");

/** The values below which lie these shares of all. */
function quantiles(values, shares) {
  const sorted = Float64Array.from(values).sort();
  return shares.map((share) => sorted[Math.round(share * (sorted.length - 1))]);
}

const completions = run.groups.flatMap((group) => group.completions);
/** The ends of the scales. A few weights and alignments lie outside; with them the others would look alike. */
const [LIGHT, HEAVY] = quantiles(
  completions.flatMap((found) => numbers(found.credit_weights)),
  [0.01, 0.99],
);
const [FAR] = quantiles(
  completions.flatMap((found) => numbers(found.evidence?.alignment).map(Math.abs)),
  [0.99],
);
/** Tint of the lightest: also that is a weight. */
const FAINT = 0.1;
const HAS_WEIGHTS = completions.some((found) => found.pieces && found.credit_weights);
const HAS_ALIGNMENT = completions.some((found) => found.pieces && found.evidence);

const within = (share) => Math.min(Math.max(share, 0), 1);
const weightTint = (weight) =>
  HEAVY > LIGHT ? FAINT + (1 - FAINT) * within((weight - LIGHT) / (HEAVY - LIGHT)) : FAINT;
const alignmentTint = (alignment) => (FAR > 0 ? within(Math.abs(alignment) / FAR) : 0);

/** Ranges of tokens that share a weight, where none are written. */
function runs(weights, count) {
  const ranges = [];
  for (let token = 0; token < count; token += 1) {
    if (ranges.length > 0 && (!weights || weights[token] === weights[token - 1])) ranges.at(-1)[1] = token + 1;
    else ranges.push([token, token + 1]);
  }
  return ranges;
}

/** Ranges of tokens that cover a completion: its paragraphs, each with what follows it before the next. */
function paragraphs({ pieces, evidence, credit_weights: weights }) {
  if (!evidence) return runs(weights, pieces.length);
  const ranges = [];
  let end = 0;
  for (const [from, to] of [...evidence.segments, [pieces.length, pieces.length]]) {
    if (from > end && ranges.length > 0) ranges.at(-1)[1] = from;
    else if (from > end) ranges.push([end, from]);
    if (to > from) ranges.push([from, to]);
    end = Math.max(end, to);
  }
  return ranges;
}

function token(completion, place) {
  const piece = completion.pieces[place];
  const made = element("span", { class: "token", tabindex: "-1", "data-token": String(place) });
  if (piece === "") made.classList.add("empty");
  else if (/^\s*\n\s*$/.test(piece)) made.classList.add("break");
  made.append(piece);
  const weight = completion.credit_weights?.[place];
  if (typeof weight === "number") made.style.setProperty("--weight", weightTint(weight));
  const alignment = completion.evidence?.alignment[place];
  if (typeof alignment === "number") {
    made.style.setProperty("--alignment", alignmentTint(alignment));
    made.classList.add(alignment < 0 ? "against" : "along");
  }
  return made;
}

function paragraph(completion, [from, to]) {
  const places = Array.from({ length: to - from }, (_, offset) => from + offset);
  const weight = completion.credit_weights?.[from];
  return element(
    "div",
    { class: "paragraph" },
    element("span", { class: "weight", title: "weight of the paragraph" }, weight === undefined ? "" : shown(weight)),
    element("div", {}, ...places.map((place) => token(completion, place))),
  );
}

const reading = document.getElementById("reading");
/** The token whose numbers are shown. */
let beside = null;

function read(span, completion) {
  const place = Number(span.dataset.token);
  const logProb = completion.log_probs[place];
  const piece = completion.pieces[place];
  const rows = [
    ["weight", completion.credit_weights && shown(completion.credit_weights[place])],
    ["alignment", completion.evidence && signed(completion.evidence.alignment[place])],
    ["log-probability", shown(logProb)],
    ["probability", typeof logProb === "number" ? percent(Math.exp(logProb)) : null],
  ].filter(([, value]) => value);
  reading.replaceChildren(
    element("p", {}, piece === "" ? "no text of its own" : JSON.stringify(piece)),
    element("dl", {}, ...rows.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)])),
  );
  reading.hidden = false;
  beside = span;
  follow();
}

function follow() {
  if (reading.hidden) return;
  const at = beside.getClientRects()[0] ?? beside.getBoundingClientRect();
  const [width, height] = [reading.offsetWidth, reading.offsetHeight];
  const left = Math.min(
    Math.max(8, at.left + at.width / 2 - width / 2),
    document.documentElement.clientWidth - width - 8,
  );
  const top = at.top - height - 6 < 0 ? at.bottom + 6 : at.top - height - 6;
  reading.style.transform = `translate(${left}px, ${top}px)`;
}

const unread = () => {
  reading.hidden = true;
};
addEventListener("scroll", follow, { capture: true, passive: true });
addEventListener("keydown", (event) => {
  if (event.key === "Escape") unread();
});

/** The completion as text; a token shows its numbers under the pointer, when tapped, and by the arrow keys. */
function tokens(completion) {
  if (!completion.pieces) {
    return element("div", { class: "text plain", tabindex: "0" }, completion.text);
  }
  const text = element(
    "div",
    {
      class: "text",
      tabindex: "0",
      role: "group",
      "aria-label": "Completion; arrow keys go from token to token",
    },
    ...paragraphs(completion).map((range) => paragraph(completion, range)),
  );
  const spans = [...text.querySelectorAll(".token")];
  const on = (event) => {
    const span = event.target.closest?.(".token");
    if (span) read(span, completion);
    else unread();
  };
  for (const name of ["pointerover", "click", "focusin"]) text.addEventListener(name, on);
  text.addEventListener("pointerleave", (event) => {
    if (event.pointerType === "mouse") unread();
  });
  text.addEventListener("focusout", unread);
  text.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const now = spans.indexOf(document.activeElement);
    spans[Math.min(Math.max(now + step, 0), spans.length - 1)]?.focus();
  });
  return text;
}
