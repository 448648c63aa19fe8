// The tokens of a draw as a table.

function showCandidates(draw, first) {
  const was = new Map(draw === first || first.greedy ? [] : first.candidates.map((one) => [one.id, one.chance]));
  const p = madeWith("top_p");
  const biased = draw.candidates.some((one) => one.bias), held = draw.candidates.some((one) => one.penalty);
  const drawn = !draw.greedy;
  const column = (name, title, left = false) => h("th", { scope: "col", title, class: left ? "l" : null }, name);
  const rows = draw.candidates.map((one, i) => {
    const skipped = one.rank !== (draw.candidates[i + 1]?.rank ?? one.rank + 1) - 1;
    const classes = [one.id === draw.winner ? "won" : "", drawn && !one.kept ? "gone" : "", skipped ? "gap" : ""];
    return h("tr", { class: classes.join(" ").trim() || null },
      h("th", { scope: "row" }, readable(one.label)),
      h("td", {}, chance(Math.exp(one.logprob))),
      biased ? h("td", {}, one.bias ? fixed(one.bias) : "") : null,
      held ? h("td", {}, one.penalty ? fixed(one.penalty) : "") : null,
      drawn ? h("td", {}, chance(one.probability)) : h("td", {}, fixed(one.z)),
      drawn ? h("td", {}, beside(Math.min(1, one.mass_before + one.probability), p)) : null,
      drawn ? h("td", { class: "l" }, bar(one.chance, was.get(one.id) ?? null), chance(one.chance)) : null,
      drawn ? h("td", {}, one.kept ? fixed(one.scaled ?? -Infinity) : "") : null,
      drawn ? h("td", {}, one.kept ? fixed(one.noise) : "") : null,
      drawn ? h("td", {}, one.kept ? fixed(one.score) : "") : null,
      h("td", { class: "why" }, one.why),
      h("td", {}, h("button", { type: "button", class: "plain", "aria-label": `Push ${readable(one.label)} up or down by logit_bias`, onclick: () => controls.get("logit_bias").put(one.id) }, "push")));
  });
  const { others } = draw;
  if (others.count) {
    const stay = !drawn ? "" : others.kept === 0 ? "all removed" : others.kept === others.count ? "all stayed in, and lost" : `${others.kept.toLocaleString("en")} stayed in, and lost; the rest were removed`;
    rows.push(h("tr", { class: drawn && !others.kept ? "gone" : null }, h("td", {}, `${others.count.toLocaleString("en")} others`), h("td", {}), biased ? h("td", {}) : null, held ? h("td", {}) : null,
      h("td", {}, drawn ? chance(others.probability) : ""), drawn ? h("td", {}) : null,
      drawn ? h("td", { class: "l" }, bar(others.chance), chance(others.chance)) : null,
      drawn ? h("td", {}) : null, drawn ? h("td", {}) : null, drawn ? h("td", {}, others.best_score === null ? "" : `≤ ${fixed(others.best_score)}`) : null, h("td", { class: "why" }, stay), h("td", {})));
  }
  const z = "z is the model’s raw number for a token (its logit) with bias and penalties";
  $("candidates-say").textContent = drawn ? `The largest sum wins: distance ÷ temperature, + random number. The distance is how far a token’s z is below the largest z; ${z}.` : `The largest z wins: ${z}. The model’s chances are made from the raw numbers: of two tokens, one that is 1 larger is 2.7 times as likely.`;
  $("candidates").replaceChildren(h("table", {},
    h("caption", {}, h("span", {}, draw === first ? "The tokens, likeliest first, and what became of each" : "The same draw with the parameters as they are now".concat(was.size && drawn ? "; a dark stroke is the chance it had before" : ""))),
    h("thead", {}, h("tr", {}, column("token", "Tokens that could have come", true), column("model’s chance", "From the raw logits, stage 1"),
      biased ? column("bias", "Stage 2") : null, held ? column("penalty", "Stage 3") : null,
      drawn ? column("after temperature", "The chance after bias, penalties and temperature, before top_p, stage 5") : column("z", "The model’s raw number (logit) with bias and penalties"),
      drawn ? column("running sum", "Of the column before, from the top down, this one’s too: once it has reached top_p, the tokens below are out, stage 6") : null,
      drawn ? column("chance in this draw", "What top_p leaves, shared anew among the tokens that stay", true) : null,
      drawn ? column("distance ÷ temp.", "How far its z is below the largest, divided by the temperature") : null,
      drawn ? column("random number", "Gumbel noise, of the seed, the candidate, the step and the token’s id") : null, drawn ? column("sum", "Of the two columns before: the largest wins, stage 7") : null,
      column("what became of it", "In words", true), column("logit_bias", "Puts a logit_bias on it, 5 to begin with"))),
    h("tbody", {}, ...rows)));
}
