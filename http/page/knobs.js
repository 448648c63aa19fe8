// The parameters that one can play with right at the draw; the same as those at the side.

const KNOBS = ["temperature", "top_p", "frequency_penalty", "presence_penalty"];
const knobs = new Map();

function buildKnobs() {
  for (const { root } of knobs.values()) root.remove();
  knobs.clear();
  for (const name of KNOBS) {
    const control = controls.get(name);
    if (!control?.slider) continue;
    const input = h("input", { type: "range", min: control.slider.min, max: control.slider.max, step: control.slider.step, id: `knob-${name}`, oninput: () => { control.write(Number(input.value)); changed(name); } });
    const output = h("output", { for: input.id });
    const root = h("div", {}, h("label", { for: input.id }, name, output), input);
    knobs.set(name, { root, input, output });
    $("again").parentElement.before(root);
  }
}

function showKnobs() {
  for (const [name, { input, output }] of knobs) {
    const control = controls.get(name);
    input.value = control.slider.value;
    output.textContent = String(control.read() ?? control.field.default);
  }
  const changes = traced?.first ? differing(traced.choice.run) : new Map();
  const names = [...changes.keys()];
  $("again").disabled = $("back").disabled = !names.length;
  $("knobs-say").textContent = !names.length ? "Move a slider: the same draw, with the same random numbers, is made again at once."
    : `The same draw with ${names.map((name) => `${name} ${json(changes.get(name) ?? controls.get(name).field.default)} instead of ${json(traced.choice.run.sent.get(name) ?? controls.get(name).field.default)}`).join(", ")}.`;
}

$("again").addEventListener("click", () => {
  const sent = fields();
  if (!differing(traced.choice.run).has("seed")) sent.set("seed", traced.choice.run.sent.get("seed"));
  complete(sent, { index: traced.choice.index, step: traced.step });
  $("text-title").scrollIntoView({ block: "nearest", behavior: still() ? "auto" : "smooth" });
});

$("back").addEventListener("click", () => {
  const { run: now } = traced.choice;
  for (const name of differing(now).keys()) { controls.get(name).write(now.sent.get(name) ?? fallback(controls.get(name).field)); changed(name); }
});
