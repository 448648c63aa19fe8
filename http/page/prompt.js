// The text field: the prompt, and the suffix behind its gap.

const GAP = "⟦gap⟧";

/** The prompt, and the suffix behind its gap, live in one text field. */
function promptControl(field) {
  const input = $("prompt");
  input.addEventListener("input", () => { splitGap(); changed("prompt"); });
  return {
    input, root: input.closest("[data-control]"),
    read: () => {
      if (!$("as-json").checked) return input.value.split(GAP)[0];
      try { return JSON.parse(input.value); } catch (error) { throw new Refusal(`prompt: this is not JSON (${error.message})`, { param: "prompt" }); }
    },
    write: (value) => {
      const text = typeof value === "string";
      $("as-json").checked = !text;
      input.value = text ? value : json(value ?? "");
    },
  };
}

/** After the text field changed: the suffix is what stands behind its gap. */
function splitGap() {
  if ($("as-json").checked || !controls.has("suffix")) return;
  const at = $("prompt").value.indexOf(GAP);
  controls.get("suffix").write(at < 0 ? undefined : $("prompt").value.slice(at + GAP.length));
  showGap();
}

/** After the suffix changed: it stands behind the text field's gap. */
function joinGap() {
  if ($("as-json").checked) return;
  const suffix = controls.get("suffix").read();
  $("prompt").value = $("prompt").value.split(GAP)[0] + (suffix === undefined ? "" : GAP + suffix);
  showGap();
}

function showGap() {
  const gap = $("prompt").value.includes(GAP) && !$("as-json").checked;
  $("gap").textContent = gap ? "Take the gap out" : "Put a gap here";
  $("gap").disabled = $("as-json").checked || !controls.get("suffix")?.field.honoured;
  $("gap-note").textContent = gap && $("prompt").value.includes(` ${GAP}`) ? "The text before the gap ends in a space. Most tokens bring their own, so take it out: the gap belongs right behind the word." : "";
}

$("gap").addEventListener("click", () => {
  const input = $("prompt");
  const at = input.selectionStart;
  const had = input.value.indexOf(GAP);
  if (had >= 0) input.setRangeText("", had, had + GAP.length, "end");
  else { input.setRangeText(GAP, at, at, "end"); if (at === input.value.length - GAP.length) say("The gap is at the end: write what comes after it."); }
  input.focus();
  splitGap();
  changed("suffix");
});

$("as-json").addEventListener("change", () => {
  const input = $("prompt");
  if ($("as-json").checked) { const text = input.value.split(GAP)[0]; input.value = json(text); }
  else { try { const value = JSON.parse(input.value); if (typeof value === "string") input.value = value; } catch { /* it stays the text it is */ } splitGap(); }
  showGap();
  changed("prompt");
});
