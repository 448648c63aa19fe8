// The parameters: what is said of each, in which group it stands, and what follows when one changes.
// What can be set, and within which limits, /v1/capabilities has told (`caps`).

// What a learner is told. Anything exact (ranges, defaults, the law's words) comes from the server.
const SAY = {
  model: "Which model answers. This server has one; ask for another and it says so.",
  prompt: "The text to go on from.",
  suffix: "The text after the gap: the model writes what goes between.",
  max_tokens: "How many tokens to add at most. A token is a word or a piece of one.",
  n: "How many continuations to make, side by side.",
  best_of: "Make this many, and return only the n that the model itself finds likeliest.",
  temperature: "Low: nearly always the likeliest token. High: unlikely ones get their turn. 0: no chance at all, only the likeliest.",
  top_p: "Before the draw, the unlikely tail is dropped: the likeliest tokens stay, until together they have this much of the probability. The one that crosses the line stays too.",
  frequency_penalty: "Holds a token back each time it has been drawn already. Below 0 it asks for repetition.",
  presence_penalty: "Holds a token back once it has been drawn at all, however often.",
  logit_bias: "Push single tokens up or down by hand. The table of a draw, below the text, has a button for each.",
  logprobs: "Tells how likely each token was, and this many others in its place. The colours need it; 0 is enough for them.",
  echo: "Gives the prompt back too, with how surprised the model was by each of its tokens.",
  stop: "End before any of these texts. One a line; write \\n for a line break.",
  seed: "Fixes the random numbers: same seed, same settings, same text. Left empty, every run draws a new one.",
  stream: "Show the text while it is made, not when it is done.",
  stream_options: "include_usage: a last message with the number of tokens.",
  user: "A name for whoever asks. It changes nothing.",
};
const GROUPS = [
  ["How each token is drawn", ["temperature", "top_p", "frequency_penalty", "presence_penalty", "logit_bias", "seed"]],
  ["How much text", ["max_tokens", "n", "best_of", "stop", "suffix"]],
  ["What comes back", ["logprobs", "echo", "stream", "stream_options", "model", "user"]],
];
const START = { max_tokens: 40, logprobs: 5, stream: true };  // where the page differs from the API’s own defaults

const controls = new Map();  // name → { field, read, write, ... }, in the API's order
const labels = new Map();    // token id → its label, as far as traces have told
let caps = null;
let drawnSeed = null;        // of the last run, if the page drew it

function showLaw() {
  $("law").open = true;
  $("law").scrollIntoView({ block: "nearest", behavior: still() ? "auto" : "smooth" });
  $("law").firstElementChild.focus({ preventScroll: true });
}

/** The default of a field as its control holds it. */
const fallback = (field) => (field.required || field.default === null ? undefined : field.default);

function buildControls() {
  const roomy = matchMedia("(min-width: 61.01rem)").matches;
  const before = new Map([...controls].map(([name, control]) => [name, control.read()]));
  controls.clear();
  for (const field of caps.parameters) controls.set(field.name, { field, ...makeControl(field) });
  const placed = new Set(["prompt", ...GROUPS.flatMap(([, names]) => names)]);
  const rest = [...controls.keys()].filter((name) => !placed.has(name));
  $("groups").replaceChildren(...[...GROUPS, ["Others", rest]].map(([title, names]) => {
    const roots = names.filter((name) => controls.has(name)).map((name) => controls.get(name).root);
    return roots.length ? h("details", { class: "group", open: roomy }, h("summary", {}, title), ...roots) : "";
  }));
  for (const [name, control] of controls) {
    if (name === "prompt") continue;
    const first = name === "max_tokens" ? Math.min(START.max_tokens, caps.model.context >> 2) : START[name];
    const start = before.has(name) ? before.get(name) : name === "model" ? caps.model.id : first ?? fallback(control.field);
    control.write(start);
  }
  $("parameters-say").textContent = "Each with what it does. A dot marks what you changed.";
}

/** Opens whatever folds hide an element. */
function open(element) {
  for (let fold = element.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
}

/** What follows from a parameter's change, whoever changed it. */
function changed(name) {
  if (name === "suffix") joinGap();
  clearWrong(name);
  for (const control of controls.values()) {
    if (control.field.required) continue;
    let value;
    try { value = control.read(); } catch { value = null; }
    control.root.classList.toggle("changed", !same(value ?? control.field.default, control.field.default));
  }
  $("run").disabled = !caps;
  called = null;
  keepState();
  noteStream();
  showSeed();
  showCall();
  showKnobs();
  if (caps && (controls.get(name)?.field.stages ?? []).some((stage) => stage.number > 1)) redraw();
}

const same = (a, b) => json(a ?? null) === json(b ?? null);

function noteStream() {
  const why = "best_of is more than n, and only finished candidates can be ranked.";
  for (const [name, words] of [["stream", "Not used now: "], ["best_of", "The text will not stream: "]]) {
    const say = $(`say-${name}`);
    if (say && controls.get(name).field.honoured) say.textContent = ranked() ? `${name === "best_of" ? `${SAY.best_of} ` : ""}${words}${why}` : SAY[name];
  }
}

/** Whether more candidates are made than returned, which cannot be streamed. */
function ranked() {
  const n = controls.get("n")?.read() ?? 1, best = controls.get("best_of")?.read() ?? 0;
  return typeof n === "number" && typeof best === "number" && best > n;
}

function newSeed() {
  return crypto.getRandomValues(new BigInt64Array(1))[0];
}

function showSeed() {
  const note = $("seed-note");
  if (!note) return;
  const empty = controls.get("seed").read() === undefined;
  if (!empty || drawnSeed === null) { note.replaceChildren(); return; }
  note.replaceChildren(`The last run drew ${drawnSeed}. `, h("button", { type: "button", class: "plain", onclick: () => { controls.get("seed").write(drawnSeed); changed("seed"); controls.get("seed").input.focus(); } }, "Keep it"));
}
