// What is set, as a link and as the state of the tab's history.

// A link holds the request and nothing else: no key is ever among the parameters.
const TEXTS = new Set(["prompt", "suffix", "user", "model"]);

function link() {
  const said = new URLSearchParams();
  for (const [name, value] of fields()) {
    if (name === "prompt" && typeof value !== "string") said.set("prompt_json", json(value));
    else said.set(name, TEXTS.has(name) && typeof value === "string" ? value : json(value));
  }
  return `${location.href.split("#")[0]}#${said}`;
}

// The entry of the browser's history holds what is set, so that Back and Reload bring all of it, and no key.
function saveState() {
  if (!caps) return;
  const said = new URLSearchParams();
  for (const [name, control] of controls) {
    if (name === "prompt") { if ($("as-json").checked) said.set("prompt_json", $("prompt").value); else said.set(name, control.read()); continue; }
    const value = control.read();
    if (value !== undefined && !same(value, control.field.default)) said.set(name, TEXTS.has(name) && typeof value === "string" ? value : json(value));
  }
  try { history.replaceState({ gnomon: String(said), drawn: drawnSeed === null ? null : String(drawnSeed) }, ""); } catch { /* too long for this browser */ }
}
const keepState = later(150, saveState);

/** What was set when this entry of the history was left. */
function restore() {
  const { gnomon, drawn } = history.state ?? {};
  if (typeof gnomon !== "string" || !followLink(new URLSearchParams(gnomon))) return false;
  if (drawn !== null) {
    drawnSeed = BigInt(drawn);
    showSeed();
    showCall();
  }
  if (run === null) $("summary").textContent = "What was set is here again; the text is not.";
  return true;
}

function followLink(said = new URLSearchParams(location.hash.slice(1))) {
  if (![...said.keys()].some((name) => controls.has(name) || name === "prompt_json")) return false;
  for (const [name, control] of controls) {
    const text = said.get(name);
    if (name === "prompt") {
      if (said.has("prompt_json")) { $("as-json").checked = true; $("prompt").value = said.get("prompt_json"); }
      else control.write(text ?? "");
    } else if (text === null) control.write(name === "model" ? caps.model.id : fallback(control.field));
    else if (TEXTS.has(name)) control.write(text);
    else control.write(parsed(text));
  }
  drawnSeed = null;
  joinGap();
  changed("prompt");
  return true;
}

function parsed(text) {
  if (/^-?\d+$/.test(text)) return typed(text);
  try { return JSON.parse(text); } catch { return text; }
}

$("share").addEventListener("click", () => {
  try { history.replaceState(history.state, "", link()); copied(location.href, $("share")); }
  catch (error) { showRefusal(error); }
});
addEventListener("hashchange", () => { if (caps && (restore() || followLink())) say("The parameters are those of the link."); });
