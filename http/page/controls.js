// One control for each kind of parameter: its element, `read` and `write`. What is typed is sent as it is, for the server to refuse.

/** A control's frame: name, stage of the law, reset, the sentence, the law's own words, a place for an error. */
function framed(field, input, ...parts) {
  const { name } = field;
  const numbers = field.name === "logprobs" ? [] : (field.stages ?? []).map((stage) => stage.number);
  input.id = `p-${name}`;
  input.setAttribute("aria-describedby", `say-${name} wrong-${name}`);
  const head = h("div", { class: "head" },
    h("label", { for: input.id }, name),
    h("button", { type: "button", class: "reset plain", "aria-label": `${name}: back to the default`, onclick: () => { controls.get(name).write(fallback(field)); changed(name); } }, "reset"),
    parts.includes("value") ? input : null);
  const bounds = field.range?.value && name !== "seed" ? ` Here: ${field.range.value.minimum ?? "any"} to ${field.range.value.maximum ?? "any"}.` : "";
  const place = numbers.length ? h("span", { class: "stage" }, `acts in stage ${numbers.at(-1)} of the draw`) : null;
  const otherwise = field.required ? "It is required." : `Default: ${field.default === null ? "none, the field is left empty" : json(field.default)}.`;
  const law = (field.sections ?? []).flatMap((section, i) => [i ? ", " : "", String(section) === "4" ? h("button", { type: "button", class: "plain", "aria-label": `section 4 of LAW.md: the law of one draw`, onclick: showLaw }, "4") : String(section)]);
  const exact = h("details", { class: "exact" }, h("summary", {}, "exactly"),
    h("p", {}, `${field.meaning}. Allowed: ${field.allowed}.${bounds} ${otherwise} LAW.md, section `, ...law, "."));
  const root = h("div", { class: "control", "data-control": name }, head, ...parts.filter((part) => part !== "value"),
    h("p", { class: "say", id: `say-${name}` }, SAY[name] ?? field.meaning), place, exact,
    h("p", { class: "wrong", id: `wrong-${name}`, role: "alert", hidden: true }));
  if (!field.honoured) {
    root.classList.add("off");
    input.disabled = true;
    root.querySelector(".say").textContent = `Not here: ${field.reason}.`;
  }
  return root;
}

function numberControl(field) {
  const { name, range } = field;
  const whole = field.type === "integer";
  const input = h("input", { class: "value", inputmode: whole ? "numeric" : "decimal", autocomplete: "off", placeholder: field.default === null ? "off" : "", oninput: () => { follow(); changed(name); } });
  const ends = range?.value ?? {};
  const slider = ends.maximum === undefined ? null : h("input", {
    type: "range", min: ends.minimum ?? 0, max: ends.maximum, step: whole ? 1 : 0.01, "aria-label": `${name}, slider`, disabled: !field.honoured,
    oninput: () => { input.value = String(Number(slider.value)); changed(name); },
  });
  const follow = () => { const value = typed(input.value); if (slider) slider.value = typeof value === "number" ? value : field.default ?? ends.minimum ?? 0; };
  return { input, root: framed(field, input, "value", slider), read: () => typed(input.value), slider,
    write: (value) => { input.value = value === undefined ? "" : typeof value === "string" ? value : json(value); follow(); } };
}

function switchControl(field, input, read, write) {
  input.addEventListener("change", () => changed(field.name));
  const root = framed(field, input, "value");
  root.querySelector(".head").append(input);
  input.classList.remove("value");
  return { input, root, read, write };
}

function booleanControl(field) {
  const input = h("input", { type: "checkbox" });
  return switchControl(field, input, () => input.checked, (value) => { input.checked = value === true; });
}

function usageControl(field) {
  const input = h("input", { type: "checkbox" });
  return switchControl(field, input, () => (input.checked ? { include_usage: true } : undefined), (value) => { input.checked = value?.include_usage === true; });
}

function textControl(field, area = false) {
  const input = h(area ? "textarea" : "input", { autocomplete: "off", spellcheck: "false", rows: area ? 2 : null, oninput: () => { changed(field.name); } });
  return { input, root: framed(field, input, input), read: () => (input.value === "" ? undefined : input.value), write: (value) => { input.value = value === undefined || value === null ? "" : String(value); } };
}

/** Stop strings, one a line, in which \n, \t, \\ and \uXXXX are what they are in JSON. */
function stopControl(field) {
  const control = textControl(field, true);
  const plain = (line) => { try { return JSON.parse(`"${line.replace(/(\\.)|"/g, (at, escaped) => escaped ?? '\\"')}"`); } catch { return line; } };
  control.read = () => { const lines = control.input.value.split("\n").filter((line) => line !== "").map(plain); return lines.length ? lines : undefined; };
  control.write = (value) => {
    const lines = value === undefined || value === null ? [] : typeof value === "string" ? [value] : value;
    control.input.value = lines.map((line) => JSON.stringify(line).slice(1, -1).replaceAll('\\"', '"')).join("\n");
  };
  return control;
}

function seedControl(field) {
  const control = textControl(field);
  control.input.inputMode = "numeric";
  control.input.placeholder = "a new one for every run";
  control.read = () => typed(control.input.value);
  control.write = (value) => { control.input.value = value === undefined || value === null ? "" : String(value); };
  const note = h("p", { class: "note", id: "seed-note" });
  control.input.after(h("div", { class: "tools" }, h("button", { type: "button", class: "plain", onclick: () => { control.write(newSeed()); changed(field.name); } }, "draw one and keep it")), note);
  return control;
}

function biasControl(field) {
  const list = h("div", { role: "group", "aria-label": "logit_bias: tokens" });
  const ends = field.range?.values ?? { minimum: -100, maximum: 100 };
  const add = h("button", { type: "button", class: "plain", disabled: !field.honoured, onclick: () => { row("", 5).id.focus(); } }, "add a token by its id");
  const rows = new Set();
  function row(id, value) {
    const one = {
      id: h("input", { "aria-label": "token id", inputmode: "numeric", value: String(id), placeholder: "id", oninput: () => { named(); changed(field.name); } }),
      slider: h("input", { type: "range", min: ends.minimum, max: ends.maximum, step: 0.5, "aria-label": "bias, slider", oninput: () => { one.value.value = String(Number(one.slider.value)); changed(field.name); } }),
      value: h("input", { "aria-label": "bias", inputmode: "decimal", value: String(value), oninput: () => { one.slider.value = Number(one.value.value) || 0; changed(field.name); } }),
      what: h("span", { class: "what" }),
    };
    one.slider.value = Number(value) || 0;
    const root = h("div", { class: "bias" }, one.what, one.id, one.slider, one.value,
      h("button", { type: "button", class: "plain", "aria-label": "remove this token", onclick: () => { rows.delete(one); root.remove(); add.focus(); changed(field.name); } }, "✕"));
    const named = () => { const label = labels.get(Number(one.id.value)); one.what.textContent = one.id.value !== "" && label !== undefined ? readable(label) : "token id"; };
    named();
    rows.add(one);
    list.append(root);
    return one;
  }
  const root = framed(field, add, list, add);
  return {
    input: add, root, rows,
    put: (id) => { const one = [...rows].find((other) => other.id.value === String(id)) ?? row(id, 5); changed(field.name); open(root); one.slider.focus(); },
    read: () => { const sent = [...rows].filter((one) => one.id.value.trim() !== ""); return sent.length ? Object.fromEntries(sent.map((one) => [one.id.value.trim(), typed(one.value.value) ?? 0])) : undefined; },
    write: (value) => { rows.clear(); list.replaceChildren(); for (const [id, bias] of Object.entries(value ?? {})) row(id, bias); },
  };
}

/** A parameter that this page was not told of: its value as JSON. */
function anyControl(field) {
  const control = textControl(field);
  const { read } = control;
  control.read = () => { const text = read(); try { return text === undefined ? undefined : JSON.parse(text); } catch { return text; } };
  control.write = (value) => { control.input.value = value === undefined ? "" : json(value); };
  return control;
}

function makeControl(field) {
  switch (field.name) {
    case "prompt": return promptControl(field);
    case "suffix": return textControl(field, true);
    case "stop": return stopControl(field);
    case "seed": return seedControl(field);
    case "logit_bias": return biasControl(field);
    case "stream_options": return usageControl(field);
  }
  switch (field.type) {
    case "integer": case "number": return numberControl(field);
    case "boolean": return booleanControl(field);
    case "string": return textControl(field);
  }
  return anyControl(field);
}
