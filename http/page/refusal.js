// A refusal: what is thrown where there is no answer, and how it is shown, beside the field that it names.

class Refusal extends Error {
  constructor(message, more = {}) { super(message); Object.assign(this, { status: 0, param: null, code: null, wait: null }, more); }
}

function clearWrong(name) {
  const wrong = $(`wrong-${name}`);
  if (!wrong || wrong.hidden) return;
  wrong.hidden = true;
  controls.get(name)?.input.removeAttribute("aria-invalid");
}

function clearAllWrong() {
  for (const name of controls.keys()) clearWrong(name);
  $("trouble").hidden = true;
}

/** Shows a refusal where it belongs: `logit_bias.5` beside logit_bias, what names no field under the button. */
function showRefusal(refusal) {
  const name = (refusal.param ?? "").replace(/^request\./, "").split(/[.[]/)[0];
  const wrong = controls.has(name) ? $(`wrong-${name}`) : null;
  const wait = refusal.wait ? ` Try again in ${plural(refusal.wait, "second")}.` : "";
  if (wrong) {
    wrong.textContent = refusal.message + (/\bor null$/.test(refusal.message) && name !== "prompt" ? " (that is, leave it empty)" : "") + wait;
    wrong.hidden = false;
    const { input } = controls.get(name);
    input.setAttribute("aria-invalid", "true");
    open(wrong);
    input.focus({ preventScroll: true });
    wrong.scrollIntoView({ block: "nearest" });
    return;
  }
  if (refusal.status === 401 || refusal.status === 403) return;  // said beside the key
  const trouble = $("trouble");
  trouble.replaceChildren(h("b", {}, refusal.status >= 500 || refusal.status === 0 ? "It did not work: " : "Refused: "), refusal.message + "." + wait);
  trouble.hidden = false;
}
