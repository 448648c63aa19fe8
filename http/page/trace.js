// The draw that is shown: which one, with which parameters it was made again, and what stands there where it cannot be.

let traced = null;  // { choice, step, first, now, made } of the draw on the screen; made: the parameters changed since
let asking = null;

/** After a run: the draw that was looked at, if it is kept and still there, else the one of which the model was least
 *  sure; this also says what the reference thinks of the text. */
function firstTrace(now) {
  const { index = 0, step = -1 } = now.keep ?? {};
  const choice = now.choices[index] ?? now.choices[0];
  const own = choice.logprobs.slice(choice.given);
  if (!own.length) return;
  now.tracing = offersTrace() ? choice : null;
  const shown = step >= 0 && step < own.length ? step : own.indexOf(Math.min(...own));
  if (now.tracing) choice.check.textContent = "Asking the reference …";
  openToken(choice, choice.given + shown, false, true);
}

/** Shows token i of a choice: its draw, or what is known of it where it was not drawn or cannot be traced. */
async function openToken(choice, i, scroll, whole = false) {
  for (const span of document.querySelectorAll('.t[aria-selected="true"]')) span.setAttribute("aria-selected", "false");
  choice.spans[i].setAttribute("aria-selected", "true");
  choice.focusable(choice.spans[i]);
  const step = i - choice.given;
  asking?.abort();
  if (step < 0 || !offersTrace()) { showReported(choice, i, step < 0 ? null : await whyNoTrace()); reveal(scroll); return; }
  traced = { choice, step, first: null, now: null };
  const mine = traced;
  $("trace").classList.add("busy");
  $("trace").setAttribute("aria-busy", "true");
  try {
    asking = new AbortController();
    const answer = await askTrace(choice, step, null, asking.signal);
    if (whole) agreed(choice, answer);
    choice.candidate = answer.candidate;
    if (traced !== mine) return;
    mine.first = mine.now = answer.draw;
    mine.made = new Map();
    showDraw();
    if (differs(choice.run)) redraw();
    if (scroll) say(`How ${readable(choice.tokens[i])} was drawn is shown below the text.`);
  } catch (error) {
    if (whole && error.name !== "AbortError") choice.check.textContent = `The reference was not asked: ${error.message}`;
    if (error.name === "AbortError" || traced !== mine) { if (whole && choice.check.textContent.endsWith("…")) check(choice); return; }
    showReported(choice, i, error.message);
  } finally {
    if (traced === mine || traced === null) { $("trace").classList.remove("busy"); $("trace").removeAttribute("aria-busy"); }
  }
  reveal(scroll);
}

function reveal(scroll) {
  if (scroll) $("trace-lead").scrollIntoView({ block: "nearest", behavior: still() ? "auto" : "smooth" });
}

/** What the completion's own answer tells of a token: its chance, and the others' that were reported. */
function showReported(choice, i, trouble = null) {
  traced = null;
  const lp = choice.logprobs[i], top = choice.tops[i];
  const ofPrompt = i < choice.given;
  $("trace-title").replaceChildren(ofPrompt ? "A token of the prompt: " : "A token: ", h("q", {}, choice.tokens[i].replaceAll("\n", "↵")));
  const surprise = lp === null ? "It is the first, so there is nothing to judge it by." : `The model gave it ${chance(Math.exp(lp))}, a log-probability of ${fixed(lp, 3)}: the further below 0, the greater the surprise.`;
  const why = ofPrompt ? "It was given, not drawn." : `Its draw cannot be shown: ${trouble}.`;
  $("trace-lead").textContent = `${surprise} ${why}`;
  $("trace-body").hidden = false;
  for (const id of ["knobs", "stages", "picture"]) $(id).hidden = true;
  $("stages").previousElementSibling.hidden = true;
  $("randomness").parentElement.hidden = true;
  const rows = Object.entries(top ?? {}).map(([label, one]) => h("tr", { class: label === choice.tokens[i] ? "won" : null }, h("th", { scope: "row" }, readable(label)), h("td", { class: "l" }, bar(Math.exp(one)), chance(Math.exp(one))), h("td", {}, fixed(one, 3))));
  $("candidates").replaceChildren(rows.length ? h("table", {}, h("caption", {}, "What the model found likely here, before temperature and the rest"), h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "token"), h("th", { scope: "col", class: "l" }, "chance"), h("th", { scope: "col" }, "log-probability"))), h("tbody", {}, ...rows)) : "");
  steppers(choice, i);
}

function steppers(choice, i) {
  delete $("steppers").dataset.waiting;
  for (const [button, to] of [[$("before"), i - 1], [$("after"), i + 1]]) {
    button.disabled = to < 0 || to >= choice.tokens.length;
    button.onclick = () => openToken(choice, to, false);
  }
}

/** The parameters of the draw that are not what the run was made with: name → value. */
function differing(now) {
  const changes = new Map();
  for (const [name, control] of controls) {
    if (!(control.field.stages ?? []).some((stage) => stage.number > 1)) continue;
    const value = name === "seed" ? control.read() ?? now.sent.get("seed") : control.read();
    const was = now.sent.get(name) ?? control.field.default;
    if (!same(value ?? control.field.default, was)) changes.set(name, value);
  }
  return changes;
}
const differs = (now) => differing(now).size > 0;

/** The same draw with the parameters as they are now. */
const redraw = later(60, async () => {
  if (!traced?.first) return;
  const mine = traced, { choice, step } = mine;
  const changes = differing(choice.run);
  if (!changes.size) { mine.now = mine.first; mine.made = changes; showDraw(); return; }
  asking?.abort();
  asking = new AbortController();
  try {
    const answer = await askTrace(choice, step, changes, asking.signal);
    if (traced !== mine) return;
    for (const name of changes.keys()) clearWrong(name);
    mine.now = answer.draw;
    mine.made = changes;
    showDraw();
  } catch (error) {
    if (error.name === "AbortError" || traced !== mine) return;
    if (error.status === 429) setTimeout(redraw, 1000 * (error.wait ?? 1));  // the line is full: a moment later
    else showRefusal(error);
  }
});
