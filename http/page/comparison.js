// What is said when a run has ended: its numbers, how it differs from the one before, which choice scores best.

/** What is said of a finished run. */
function conclusion(now) {
  const parts = [];
  if (now.usage) parts.push(`${plural(now.usage.prompt_tokens, "token")} read, ${plural(now.usage.completion_tokens, "token")} drawn.`);
  else if (now.sent.has("logprobs")) parts.push(`${plural(tokensOf(now), "token")} drawn.`);
  if (now.sent.has("seed")) parts.push(`Seed ${now.sent.get("seed")}.`);
  if (now.compared) parts.push(now.compared);
  return parts.join(" ");
}

/** A choice's number among its prompt's candidates: what its draws are made with. null: ranked, and not yet traced. */
const candidateOf = (choice) => ((choice.run.sent.get("best_of") ?? 0) > choice.run.n ? choice.candidate : choice.index % choice.run.n);

/** The drawn tokens of two runs with one seed, candidate by candidate; what one of them does not have is not compared. */
function compare(before, now) {
  if (!before || now.returned || String(before.sent.get("seed")) !== String(now.sent.get("seed")) || json(before.sent.get("prompt")) !== json(now.sent.get("prompt"))) return null;
  const place = (choice) => (candidateOf(choice) === null ? null : `${choice.run.promptOf(choice.index)} ${candidateOf(choice)}`);
  const drawn = (choice) => choice.tokens.slice(choice.given);
  const known = new Map(before.choices.filter((choice) => place(choice) !== null).map((choice) => [place(choice), drawn(choice)]));
  let both = 0, longer = false;
  for (const choice of now.choices) {
    const a = known.get(place(choice)) ?? [], b = drawn(choice);
    if (!a.length || !b.length) continue;
    const at = b.findIndex((label, i) => i < a.length && label !== a[i]);
    const where = now.choices.length > 1 ? ` of choice ${choice.index}` : "";
    if (at >= 0) return `The same seed as before: the first difference is at token ${at + 1}${where}, ${readable(b[at])} instead of ${readable(a[at])}.`;
    both++;
    longer ||= a.length !== b.length;
  }
  if (!both) return null;
  const texts = both > 1 ? `${both === now.choices.length ? "" : `${both} times `}the same texts` : now.choices.length > 1 ? "once the same text" : "the same text";
  return longer ? `As far as both go, ${texts} as the run before.` : `${texts[0].toUpperCase()}${texts.slice(1)} as the run before.`;
}

function concluded(now, before) {
  now.compared = compare(before, now);
  $("summary").replaceChildren(conclusion(now));
  rank(now);
  say(`Done. ${$("summary").textContent} ${now.choices.length === 1 ? now.choices[0].points.join("") : ""}`);
  if (now.sent.has("logprobs")) { firstTrace(now); agree(now); }
}

/** Several choices: which of them scores best; and where some were left out, an offer to show all. */
function rank(now) {
  const best = now.sent.get("best_of") ?? 0;
  if (now.returned) {
    for (const choice of now.choices) {
      const as = now.returned.findIndex((tokens) => json(tokens) === json(choice.tokens));
      choice.root.classList.toggle("returned", as >= 0);
      choice.title.textContent = as >= 0 ? `Candidate ${choice.index}, returned as choice ${as}` : `Candidate ${choice.index}`;
      if (as >= 0) now.returned[as] = null;
    }
    return;
  }
  const scored = now.choices.filter((choice) => choice.mean !== null);
  if (now.prompts.length === 1 && scored.length > 1) {
    const top = scored.reduce((a, b) => (b.mean > a.mean ? b : a));
    top.title.textContent += ", the likeliest";
  }
  if (best > now.n) {
    const all = new Map(now.sent);
    all.delete("best_of");
    all.set("n", best);
    if (!all.has("logprobs")) all.set("logprobs", 0);
    if (controls.get("stream").read()) all.set("stream", true);
    const offer = h("button", { type: "button", class: "plain", onclick: () => {
      const returned = now.prompts.length === 1 && now.choices[0].tokens.length ? now.choices.map((choice) => choice.tokens) : null;
      const wait = complete(all);
      run.returned = returned;
      return wait;
    } }, `See all ${best} candidates`);
    $("summary").append(` The ${now.n} likeliest of ${best}. `, offer, ", the same ones, since a seed gives each candidate its own draws.");
  }
}
