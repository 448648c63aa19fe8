// How values are written: JSON with exact integers, numbers as typed, counts and chances as people say them.

/** JSON that keeps 64-bit integers, which JSON.stringify refuses and a double would round. */
function json(value, indent = "") {
  const inner = indent && indent + "  ";
  const [open, between, close] = indent ? ["\n" + inner, ",\n" + inner, "\n" + indent.slice(2)] : ["", ",", ""];
  if (typeof value === "bigint") return String(value);
  if (Array.isArray(value)) return "[" + value.map((one) => json(one)).join(indent ? ", " : ",") + "]";
  if (value && typeof value === "object") {
    const colon = indent ? ": " : ":";
    const parts = Object.entries(value).map(([key, one]) => JSON.stringify(key) + colon + json(one));
    return parts.length ? "{" + open + parts.join(between) + close + "}" : "{}";
  }
  return JSON.stringify(value);
}

/** What was typed into a field for a number: the number if it is one, else the text, for the server to refuse. */
function typed(text) {
  const sent = text.trim();
  if (sent === "") return undefined;
  if (/^-?(0|[1-9]\d*)$/.test(sent)) {
    const exact = BigInt(sent);
    return Number.isSafeInteger(Number(exact)) ? Number(exact) : exact;
  }
  return /^-?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$/i.test(sent) && Number.isFinite(Number(sent)) ? Number(sent) : sent;
}

const plural = (count, one) => `${count.toLocaleString("en")} ${one}${count === 1 ? "" : "s"}`;
const fixed = (x, digits = 2) => (x === null || x === undefined ? "" : Number.isFinite(x) ? x.toFixed(digits).replace("-", "−") : x > 0 ? "∞" : "−∞");

/** A chance as people say it. */
function chance(p) {
  if (p >= 0.99995 || p === 0) return `${p === 0 ? 0 : 100} %`;
  if (p >= 0.0995) return `${(100 * p).toFixed(p > 0.9995 ? 2 : p > 0.995 ? 1 : 0)} %`;
  if (p >= 0.001) return `${(100 * p).toFixed(1)} %`;
  if (p >= 1e-6) return `1 in ${Number((1 / p).toPrecision(2)).toLocaleString("en")}`;
  return p.toExponential(1).replace("e-", " · 10⁻").replace(/10⁻(\d+)/, (_, n) => "10" + [..."-" + n].map((c) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(c)]).join(""));
}

/** A label in quotes, which stay on its line. */
const readable = (label) => `“${label.replaceAll("\n", "↵").replaceAll("\t", "⇥").replace(/^ /, "\u00a0")}”`;
