// One choice of the text: its tokens by their chances, chosen by mouse or keyboard, its score and its end.

const SCALE = [[0.9, "90 % or more"], [0.5, "50 to 90 %"], [0.2, "20 to 50 %"], [0.05, "5 to 20 %"], [0.01, "1 to 5 %"], [0, "below 1 %"]];
const shade = (p) => 1 + SCALE.findIndex(([least]) => p >= least);

$("legend").append(...SCALE.map(([, words], i) => h("li", {}, h("span", { class: `t t${i + 1}`, "aria-hidden": "true" }, "the"), ` ${words}`)),
  h("li", {}, h("span", { class: "t cut", "aria-hidden": "true" }, "the"), " cut off by a stop string"),
  h("li", {}, h("span", { class: "t mark", "aria-hidden": "true" }, "the"), " a token without text of its own"),
  h("li", { id: "legend-echo", hidden: true }, h("span", { class: "t begins", "aria-hidden": "true" }, "the"), " the first token after the prompt"),
  h("li", {}, "Reference: gnomon’s law in plain NumPy, which draws every token again."));

/** One choice on the screen, as far as it has come. */
class Choice {
  constructor(run, index, title) {
    this.run = run;
    this.index = index;
    this.tokens = [];
    this.logprobs = [];
    this.tops = [];
    this.offsets = [];
    this.spans = [];
    this.points = [];      // the text, a code point an entry, as text_offset counts
    this.finish = null;
    this.candidate = null; // its number among all that were sampled, when known
    this.title = h("b", {}, title);
    this.state = h("span", {});
    this.list = h("span", { class: "tokens", "aria-label": `Tokens of ${title}; arrow keys move, Enter shows how one was drawn`, onkeydown: (event) => this.move(event), onclick: (event) => this.pick(event) });
    this.text = h("div", { class: "text caret" });
    this.score = h("p", { class: "sure" });
    this.check = h("p", {});
    this.text.append(this.list);
    this.root = h("article", { class: "choice" }, h("h3", {}, this.title, this.state), this.text, h("footer", {}, this.score, this.check));
  }

  /** The prompt before the text and the suffix after it, as context, where the answer does not bring them itself. */
  around(prompt, suffix) {
    if (prompt) this.list.before(h("span", { class: "given" }, prompt));
    if (suffix) this.list.after(h("span", { class: "given" }, suffix));
  }

  add(choice) {
    const { text, logprobs, finish_reason: finish } = choice;
    this.points.push(...text);
    const first = this.tokens.length;
    if (logprobs) {
      for (let i = 0; i < logprobs.tokens.length; i++) {
        this.tokens.push(logprobs.tokens[i]);
        this.logprobs.push(logprobs.token_logprobs[i]);
        this.tops.push(logprobs.top_logprobs[i]);
        this.offsets.push(logprobs.text_offset[i]);
      }
      const from = this.run.echo ? 0 : this.offsets[0] ?? 0;
      const made = document.createDocumentFragment();
      for (let i = first; i < this.tokens.length; i++) {
        const begin = this.offsets[i] - from, end = (this.offsets[i + 1] ?? Infinity) - from;
        made.append(this.span(i, this.points.slice(begin, end).join(""), begin >= this.points.length));
      }
      const below = this.text.scrollHeight - this.text.scrollTop - this.text.clientHeight;
      this.list.append(made);
      if (first === 0 && this.spans.length) { this.list.setAttribute("role", "listbox"); this.list.setAttribute("aria-orientation", "horizontal"); this.spans[0].tabIndex = 0; }
      if (below < 40) this.text.scrollTop = this.text.scrollHeight;
    } else if (text) this.list.append(text);
    if (finish) {
      this.finish = finish;
      this.text.classList.remove("caret");
    }
    this.tell();
  }

  /** How many of the tokens are the echoed prompt's. */
  get given() {
    const { echo, prompts, usage } = this.run;
    if (!echo) return 0;
    const prompt = prompts[this.run.promptOf(this.index)];
    if (Array.isArray(prompt)) return prompt.length;
    if (usage && prompts.length === 1) return usage.prompt_tokens;
    const length = [...prompt].length;
    return length === 0 ? 1 : this.offsets.filter((offset) => offset < length).length;
  }

  span(i, shown, past) {
    const label = this.tokens[i], lp = this.logprobs[i];
    const p = lp === null ? null : Math.exp(lp);
    const classes = ["t"];
    if (p !== null) classes.push(`t${shade(p)}`);
    let text = shown.replaceAll("\n", "↵\n");
    if (shown === "") {
      text = label.replace("bytes:", "").replaceAll("\n", "↵");
      classes.push(past && !/^(<|bytes:|token_id:)/.test(label) ? "cut" : "mark");
    }
    const known = p === null ? "nothing before it to judge it by" : `${chance(p)}, log-probability ${fixed(lp, 3)}`;
    const told = `${readable(label)}: ${known}${classes.includes("cut") ? ", cut off by a stop string" : ""}`;
    const span = h("span", { class: classes.join(" "), role: "option", "aria-selected": "false", "aria-label": told, title: told, tabindex: "-1" }, text);
    span.number = i;
    this.spans.push(span);
    return span;
  }

  /** The scores, from what was reported. */
  tell() {
    const own = this.logprobs.slice(this.given).filter((lp) => lp !== null);
    this.mean = own.length ? own.reduce((sum, lp) => sum + lp, 0) / own.length : null;
    const made = this.tokens.length - this.given;
    const why = { stop: this.stopped(), length: "reached max_tokens" }[this.finish];
    this.state.textContent = this.finish ? why : "";
    const { given } = this;
    if (this.run.echo) for (const span of this.spans) span.classList.toggle("begins", span.number === given);
    const parts = [];
    if (this.run.echo && this.given > 1) {
      const before = this.logprobs.slice(1, this.given);
      if (before.length) parts.push(`Prompt: ${scored(before.length, before.reduce((sum, lp) => sum + lp, 0) / before.length)} after its first. Completion:`);
    }
    if (this.mean !== null) parts.push(`${scored(made, this.mean)}: like choosing one of ${fixed(Math.exp(-this.mean), 1)} each time.`);
    this.score.textContent = parts.join(" ");
  }

  /** Why it ended with finish_reason stop: the last token was an end token, or it completed a stop string. */
  stopped() {
    const stops = [this.run.sent.get("stop") ?? []].flat(), last = this.tokens.at(-1);
    if (!stops.length) return "ended by itself";
    const completes = (one) => last.includes(one) || [...one].some((_, k, all) => last.startsWith(all.slice(k).join("")));
    if (last === undefined || (/^<.*>$/.test(last) && stops.some(completes))) return "ended by itself or at a stop string";
    return last.startsWith("bytes:") || stops.some(completes) ? "ended at a stop string" : "ended by itself";
  }

  move(event) {
    const at = this.spans.indexOf(document.activeElement);
    if (at < 0) return;
    const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: this.spans.length - 1 }[event.key];
    if (to !== undefined) {
      event.preventDefault();
      const next = this.spans[Math.max(0, Math.min(this.spans.length - 1, to))];
      this.focusable(next);
      next.focus();
    } else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      if (!event.ctrlKey && !event.metaKey) openToken(this, at, true);
    }
  }

  pick(event) {
    const span = event.target.closest(".t");
    if (span && getSelection().isCollapsed) { this.focusable(span); openToken(this, span.number, true); }
  }

  focusable(span) {
    for (const other of this.spans) if (other.tabIndex === 0) other.tabIndex = -1;
    span.tabIndex = 0;
  }
}

const scored = (count, mean) => `${plural(count, "token")}, mean log-probability ${fixed(mean, 3)}`;
