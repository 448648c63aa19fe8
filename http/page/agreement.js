// What the reference says of a text: asked for through the trace endpoint, whole or one draw.

const offersTrace = () => Boolean(caps?.trace);
let noTrace = null;

/** Why the trace is not offered, in the server's words. */
async function whyNoTrace() {
  if (noTrace === null) {
    try { await call("v1/completions/trace", "{}"); }
    catch (error) { noTrace = error.message; }
  }
  return noTrace ?? "it is not among the server’s capabilities";
}

/** What the trace endpoint is asked: the request of a run, one choice of it, and the tokens that were drawn. */
async function askTrace(choice, step, changes = null, signal = undefined) {
  const request = new Map(choice.run.sent);
  for (const name of ["stream", "stream_options"]) request.delete(name);
  let { index } = choice;
  if (changes) {
    // The draws of one candidate, whatever the others come to: it is asked for by its number, alone with its prompt.
    const { run: now } = choice;
    request.set("prompt", now.prompts[now.promptOf(index)]);
    index = choice.candidate ?? index % now.n;
    request.set("n", index + 1);
    request.delete("best_of");
    for (const [name, value] of changes) if (value === undefined) request.delete(name); else request.set(name, value);
  }
  const tokens = choice.tokens.slice(choice.given);  // all of them, whichever step: the server keeps what it computed
  const response = await call("v1/completions/trace", json({ request: object(request), index, tokens, step }), signal);
  return response.json();
}

/** What the reference says about each choice, one after another. */
async function agree(now) {
  const some = now.choices.filter((choice) => choice.tokens.length > choice.given);
  if (!offersTrace()) {
    const why = await whyNoTrace();
    for (const choice of some) choice.check.textContent = `The reference was not asked: ${why}.`;
    return;
  }
  for (const [i, choice] of some.entries()) {
    if (choice === now.tracing) continue;
    if (i < 4) await check(choice);
    else choice.check.replaceChildren(h("button", { type: "button", class: "plain", onclick: () => check(choice) }, "Ask the reference"));
    if (run !== now) return;
  }
}

async function check(choice) {
  choice.check.textContent = "Asking the reference …";
  try { agreed(choice, await askTrace(choice, null)); }
  catch (error) { choice.check.textContent = error.message ? `The reference was not asked: ${error.message}` : ""; }
}

function agreed(choice, answer) {
  const { tokens, agree: same, first_difference: at } = answer.agreement;
  choice.candidate = answer.candidate;
  choice.check.textContent = `Reference agrees on ${same} of ${plural(tokens, "token")}${at === null || at === undefined ? "." : `, first not at token ${at + 1}.`}`;
  for (const step of answer.steps) {
    if (!step.agrees) {
      const span = choice.spans[choice.given + step.step];
      span?.classList.add("differs");
      span?.setAttribute("title", `${span.title}; the reference draws ${readable(step.reference_token)}`);
    }
  }
}
