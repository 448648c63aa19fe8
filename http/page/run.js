// One run: sent, shown while it comes, stopped.

let run = null;  // { sent, echo, prompts, choices, ... } of what is on the screen
let sending = null;  // the AbortController of the request under way

const isIds = (prompt) => Array.isArray(prompt) && typeof prompt[0] === "number";

/** Sends what is set, or `sent`, and shows what comes. keep: the choice and the step whose draw to show then. */
async function complete(sent = null, keep = null) {
  if (!caps) return;
  stop();
  clearAllWrong();
  const mine = new AbortController();
  sending = mine;
  const wasRun = run;
  const shownBefore = [...$("choices").childNodes];
  let now;
  try {
    now = begun(sent ?? ready());
  } catch (error) {
    sending = null;
    showRefusal(error);
    return;
  }
  run = now;
  now.keep = keep;
  called = now.sent;
  showCall();
  saveState();
  $("legend-echo").hidden = !now.echo;
  $("choices").replaceChildren(...now.choices.map((choice) => choice.root));
  for (const choice of now.choices) choice.text.style.height = room(now, choice);
  $("choices").setAttribute("aria-busy", "true");
  running(true);
  $("summary").textContent = "Waiting for the first token …";
  say("Completing");
  try {
    const response = await call("v1/completions", json(object(now.sent)), mine.signal);
    if (now.sent.get("stream") === true) {
      for await (const event of events(response)) {
        for (const choice of event.choices) now.choices[choice.index].add(choice);
        if (event.usage) now.usage = event.usage;
        now.fingerprint = event.system_fingerprint;
        $("summary").textContent = progress(now);
      }
    } else {
      const answer = await response.json();
      now.usage = answer.usage;
      now.fingerprint = answer.system_fingerprint;
      for (const choice of answer.choices) now.choices[choice.index].add(choice);
    }
    now.done = true;
  } catch (error) {
    if (error.name !== "AbortError") showRefusal(error);
    if (!now.choices.some((choice) => choice.points.length)) {  // nothing came: what was there before stays
      if (sending === mine) { run = wasRun; $("choices").replaceChildren(...shownBefore); $("summary").textContent = wasRun ? conclusion(wasRun) : "Nothing yet."; }
    } else if (sending === mine) $("summary").textContent = `${error.name === "AbortError" ? "Stopped" : "Broken off"} after ${plural(tokensOf(now), "token")}.${now.sent.has("seed") ? ` Seed ${now.sent.get("seed")}.` : ""}`;
  } finally {
    for (const choice of now.choices) choice.text.classList.remove("caret");
    if (sending === mine) { sending = null; running(false); $("choices").removeAttribute("aria-busy"); }
  }
  if (now.done) concluded(now, wasRun);
  else if (run === now) say($("summary").textContent);
}

/** The fields as they are sent, with a seed of the page's own where the user gave none. */
function ready() {
  if (controls.has("seed") && controls.get("seed").read() === undefined) drawnSeed = newSeed();
  const sent = fields();
  showSeed();
  showCall();
  return sent;
}

/** A run that is about to be sent, with its empty choices. */
function begun(sent) {
  const prompt = sent.get("prompt");
  const prompts = Array.isArray(prompt) && !isIds(prompt) ? prompt : [prompt ?? ""];
  const n = count(sent) / prompts.length;
  const now = { sent, prompts, n, echo: sent.get("echo") === true, choices: [], usage: null, done: false };
  now.promptOf = (index) => Math.floor(index / n);
  for (let index = 0; index < prompts.length * n; index++) {
    const which = prompts.length > 1 ? `Prompt ${now.promptOf(index)}, choice ${index}` : prompts.length * n > 1 ? `Choice ${index}` : "The completion";
    const choice = new Choice(now, index, which);
    const given = prompts[now.promptOf(index)];
    choice.around(now.echo || typeof given !== "string" ? "" : given, sent.get("suffix"));
    if (!sent.has("logprobs")) choice.check.textContent = "Set logprobs (0 is enough) to see the tokens, their chances and their draws.";
    now.choices.push(choice);
  }
  return now;
}

/** The height that a choice will need, so that nothing moves while it is written. */
function room(now, choice) {
  const width = Math.max(200, choice.root.clientWidth - 45);
  const most = typeof now.sent.get("max_tokens") === "number" ? now.sent.get("max_tokens") : 16;
  const given = now.prompts[now.promptOf(choice.index)];
  const context = `${typeof given === "string" ? given : ""}${now.sent.get("suffix") ?? ""}`;
  const chars = context.length + most * 4.2 + (Array.isArray(given) ? given.length * 4.2 : 0);
  const lines = Math.ceil(chars / (width / 8.6)) + (context.match(/\n/g)?.length ?? 0) + 1;
  return `${Math.min(Math.max(lines, 3), now.choices.length > 1 ? 11 : 15) * 2.15}rem`;
}

const tokensOf = (now) => now.choices.reduce((sum, choice) => sum + Math.max(0, choice.tokens.length - choice.given), 0);
const progress = (now) => (now.sent.has("logprobs") ? `${plural(tokensOf(now), "token")} …` : "Writing …");

function running(on) {
  const button = $("run");
  button.textContent = on ? "Stop" : "Complete";
}

function stop() {
  if (!sending) return;
  const was = sending;
  was.abort();
}

$("run").addEventListener("click", () => { if (sending) stop(); else complete(); });
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); complete(); }
  if (event.key === "Escape") stop();
});
