// What happens when the page is opened and left: the server is asked what it can do, and the controls are made of its answer.
// What is wrong with a request is left to the server to say.

$("skip").addEventListener("click", () => $("prompt").focus());

async function begin() {
  const facts = $("facts");
  try {
    caps = await (await call("v1/capabilities")).json();
  } catch (error) {
    if (error.status === 401) { facts.textContent = "Waiting for a key."; return; }
    facts.replaceChildren(`The server said: ${error.message}. `, h("button", { type: "button", class: "plain", onclick: begin }, "Ask again"));
    if (error.code === "loading") setTimeout(begin, 1000 * (error.wait ?? 5));
    return;
  }
  $("key-wrong").hidden = true;
  if (key) { $("key-box").hidden = true; $("key-open").textContent = "API key ✓"; $("key-open").setAttribute("aria-expanded", "false"); }
  const { model, engine } = caps;
  facts.textContent = `${model.id} · ${model.vocab_size.toLocaleString("en")} tokens to choose from · room for ${model.context.toLocaleString("en")} · ${engine} engine`;
  buildControls();
  buildKnobs();
  const suffix = controls.get("suffix")?.field;
  showGap();
  $("prompt-say").textContent = `${suffix?.honoured ? "A gap in the text is filled: put the cursor where words are missing, right behind the word before them." : `No gaps here: ${suffix?.reason ?? "this server has no suffix"}.`} As JSON: a list of texts, token ids, lists of those, or null.`;
  if (!restore() && !followLink()) changed("prompt");
}

addEventListener("pagehide", () => { stop(); saveState(); });
begin();
