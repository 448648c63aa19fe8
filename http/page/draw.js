// One draw in words: who won, with what chance, and what each stage of the law did.

const bar = (p, was = null) => {
  const fill = h("i");
  fill.style.width = `${Math.min(100, 100 * p)}%`;
  const mark = was === null ? "" : h("b");
  if (mark) mark.style.left = `calc(${Math.min(100, 100 * was)}% - 1px)`;
  return h("span", { class: "bar", "aria-hidden": "true" }, fill, mark);
};

/** What a parameter was in the draw on the screen. */
function madeWith(name) {
  const { field } = controls.get(name), { choice, made } = traced;
  return (made.has(name) ? made.get(name) : choice.run.sent.get(name)) ?? field.default;
}

/** A sum of chances beside top_p: with as many digits as show on which side of it the sum is. */
function beside(mass, top_p) {
  for (let digits = mass < 0.0995 ? 1 : 0; digits < 15; digits++) {
    const text = (100 * mass).toFixed(digits), shown = Number(text) / 100;
    if (shown < top_p === mass < top_p && ((shown > 0 && shown < 1) || shown === mass)) return `${text} %`;
  }
  return mass > 1 - 1e-9 ? "100 %" : `just ${mass < top_p ? "under" : "over"} ${100 * top_p} %`;
}

/** A draw with its tokens at hand: every one of `winner`, `runner_up` is an id. */
const rowOf = (draw, id) => draw.candidates.find((one) => one.id === id) ?? null;

function showDraw() {
  const { choice, step, first, now: draw } = traced;
  for (const one of draw.candidates) labels.set(one.id, one.label);
  const won = rowOf(draw, draw.winner);
  $("trace-body").hidden = false;
  for (const id of ["knobs", "stages", "picture"]) $(id).hidden = false;
  $("stages").previousElementSibling.hidden = false;
  $("randomness").parentElement.hidden = false;
  $("trace-title").replaceChildren(`Draw ${step + 1}: `, h("q", {}, won.label.replaceAll("\n", "↵")));
  $("trace-lead").textContent = lead(draw, first, won, choice.tokens[choice.given + step]);
  showKnobs();
  showStages(draw);
  showPicture(draw.picture);
  showCandidates(draw, first);
  $("randomness").textContent = draw.greedy ? "There is none: at temperature 0 the largest z wins."
    : `Seed ${draw.seed}, candidate ${draw.candidate} and step ${draw.step} give the key ${draw.key.join(" ")}. With a token’s id it gives two words of 32 bits, for ${readable(won.label)} ${won.words.join(" ")}, and from them comes its random number, ${fixed(won.noise, 4)}. Nothing else is random: the same request gives the same text.`;
  steppers(choice, choice.given + step);
}

/** How many could be drawn, of how many, and the probability that those had who were dropped. */
function nucleusOf(draw) {
  const kept = draw.candidates.filter((one) => one.kept).length + draw.others.kept;
  const all = draw.candidates.length + draw.others.count;
  const won = rowOf(draw, draw.winner);
  return { kept, all, gone: 1 - won.probability / won.chance };
}

function lead(draw, first, won, given) {
  const winner = readable(won.label);
  const before = rowOf(first, first.winner);
  const verdict = (then, now) => (draw === first ? `${winner} ${then}` : won.id === before.id ? `${winner} still ${now}` : `Now ${winner} ${now}, instead of ${readable(before.label)}`);
  const second = rowOf(draw, draw.runner_up);
  const by = second && draw.margin !== null ? `, ahead of ${readable(second.label)} by ${fixed(draw.margin)}` : "";
  const other = draw === first && won.label !== given ? ` The engine drew ${readable(given)} here, and the reference does not.` : "";
  if (draw.greedy) return `${verdict("has the largest z", "has the largest z")}${by}. At temperature 0 that is all: nothing is drawn.${other}`;
  const { kept, all } = nucleusOf(draw);
  const field = kept === all ? `All ${all.toLocaleString("en")} tokens could come.` : kept === 1 ? "No other token could come." : `${kept.toLocaleString("en")} of ${all.toLocaleString("en")} tokens could come.`;
  return `${verdict("won the draw", "wins the draw")}, with a chance of ${chance(won.chance)}${by}. ${field}${other}`;
}

function showStages(draw) {
  const best = draw.candidates.reduce((a, b) => (b.logprob > a.logprob ? b : a));
  const top = draw.candidates[0];
  const some = (list, words) => list.slice(0, 3).map(words).join(", ") + (list.length > 3 ? ` and ${list.length - 3} more` : "");
  const signed = (x) => `${x > 0 ? "+" : ""}${fixed(x)}`;
  const pushed = draw.candidates.filter((one) => one.bias), held = draw.candidates.filter((one) => one.penalty);
  const rows = [
    [1, "the model", `Likeliest is ${readable(best.label)} with ${chance(Math.exp(best.logprob))}.`, true],
    [2, "logit_bias", pushed.length ? `Pushes ${some(pushed, (one) => `${readable(one.label)} ${signed(one.bias)}`)}.` : "Pushes nothing.", pushed.length],
    [3, "penalties", held.length ? `Move what was drawn before: ${some(held, (one) => `${readable(one.label)} ${signed(one.penalty)}`)}.` : "Hold nothing back.", held.length],
  ];
  if (draw.greedy) {
    rows.push([4, "temperature 0?", `Yes: the largest z wins. z is the model’s raw number for a token (its logit) with bias and penalties.`, true]);
    for (const [i, name] of ["temperature", "top_p", "the draw"].entries()) rows.push([5 + i, name, "Not used at temperature 0.", false]);
  } else {
    const { kept, all, gone } = nucleusOf(draw);
    const t = madeWith("temperature"), p = madeWith("top_p"), second = rowOf(draw, draw.runner_up);
    rows.push(
      [4, "temperature 0?", "No: it goes on below.", false],
      [5, "temperature", t === 1 ? "Is 1: the chances stay as they are." : `${t} ${t < 1 ? "sharpens" : "flattens"} the chances: ${readable(top.label)} has ${chance(top.probability)} now.`, t !== 1],
      [6, "top_p", p === 1 ? "Is 1: nothing is dropped." : kept === all ? `${p} is reached by no fewer than all.` : `${p} is reached by the ${kept === 1 ? "first token" : `first ${kept.toLocaleString("en")}`}: the other ${(all - kept).toLocaleString("en")} are dropped, ${chance(gone)} in all, and the chances are shared anew.`, p !== 1],
      [7, "the draw", `Each token that is left gets a random number on top, and the largest sum wins: ${readable(rowOf(draw, draw.winner).label)}${second ? `, before ${readable(second.label)}` : ""}.`, true],
    );
  }
  $("stages").replaceChildren(...rows.map(([number, name, words, busy]) => h("li", { class: busy ? null : "idle" }, h("span", {}, String(number)), h("span", {}, name), h("span", {}, words))));
}
