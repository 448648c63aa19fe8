// The request that is sent, and its two other spellings: curl, and Python with the openai SDK.

/** name → value of all that is to be sent: what is required, and what differs from the API's defaults. */
function fields() {
  const sent = new Map();
  for (const [name, control] of controls) {
    const value = control.read() ?? (name === "seed" && drawnSeed !== null ? drawnSeed : undefined);
    if (control.field.required) sent.set(name, value ?? "");
    else if (value !== undefined && control.field.honoured && !same(value, control.field.default)) sent.set(name, value);
  }
  if (ranked()) { sent.delete("stream"); sent.delete("stream_options"); }
  return sent;
}

const object = (sent) => Object.fromEntries(sent);

function asCurl(sent) {
  const quoted = json(object(sent), "  ").replaceAll("'", "'\\''");
  return `curl ${sent.get("stream") === true ? "-N " : ""}${endpoint()}/completions \\\n  -H 'Content-Type: application/json' \\\n${asksForKey ? '  -H "Authorization: Bearer $GNOMON_KEY" \\\n' : ""}  -d '${quoted}'`;
}

function asPython(sent) {
  const literal = (value) => {
    if (value === null) return "None";
    if (typeof value === "boolean") return value ? "True" : "False";
    if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
    if (typeof value === "object") return `{${Object.entries(value).map(([name, one]) => `${JSON.stringify(name)}: ${literal(one)}`).join(", ")}}`;
    return json(value);
  };
  const given = [...sent].map(([name, value]) => `    ${name}=${literal(value)},`).join("\n");
  const client = asksForKey ? 'import os\n\nfrom openai import OpenAI\n\nclient = OpenAI(base_url="URL", api_key=os.environ["GNOMON_KEY"])' : 'from openai import OpenAI\n\nclient = OpenAI(base_url="URL", api_key="none")';
  const made = `client.completions.create(\n${given}\n)`;
  const one = "print(choice.index, choice.text)";
  const use = sent.get("stream") === true
    ? `for chunk in ${made}:\n    for choice in chunk.choices:\n        ${count(sent) === 1 ? 'print(choice.text, end="", flush=True)' : "print(choice.index, repr(choice.text))"}`
    : `for choice in ${made}.choices:\n    ${one}`;
  return `${client.replace("URL", endpoint())}\n${use}\n`;
}

const endpoint = () => new URL("v1", location.href.split("#")[0]).href;

/** How many choices a request asks for. */
function count(sent) {
  const prompt = sent.get("prompt");
  const prompts = Array.isArray(prompt) && typeof prompt[0] !== "number" ? prompt.length : 1;
  const n = sent.get("n") ?? 1;
  return prompts * (typeof n === "number" && n >= 1 && n <= 128 ? n : 1);
}

let language = "curl";
let called = null;  // the request of the text on the screen, until a parameter is changed

function showCall() {
  if (!caps) return;
  try { $("code").textContent = (language === "curl" ? asCurl : asPython)(called ?? fields()); }
  catch (error) { $("code").textContent = error.message; }
}

for (const tab of [$("tab-curl"), $("tab-python")]) {
  const choose = () => {
    language = tab.id.slice(4);
    for (const other of [$("tab-curl"), $("tab-python")]) { other.setAttribute("aria-selected", String(other === tab)); other.tabIndex = other === tab ? 0 : -1; }
    $("call").setAttribute("aria-labelledby", tab.id);
    showCall();
  };
  tab.addEventListener("click", choose);
  tab.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    const other = tab.id === "tab-curl" ? $("tab-python") : $("tab-curl");
    other.focus();
    other.click();
  });
}
$("copy").addEventListener("click", () => copied($("code").textContent, $("copy")));
