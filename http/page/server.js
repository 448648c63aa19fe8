// The server this page came from: one call, and the events of a stream.

/** One call. What is not an answer is thrown as a Refusal, in the server's words where it has any. */
async function call(path, body, signal) {
  const headers = { accept: "application/json, text/event-stream" };
  if (key) headers.authorization = `Bearer ${key}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method: body === undefined ? "GET" : "POST", headers, body, signal, cache: "no-store", redirect: "error" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("the server cannot be reached; is it still running?", { code: "unreachable" });
  }
  if (response.ok) return response;
  const text = await response.text();
  let told = null;
  try { told = JSON.parse(text).error; } catch { /* a proxy's words, not the server's */ }
  const wait = Number(response.headers.get("retry-after")) || null;
  const refusal = new Refusal(told?.message ?? `the answer was ${response.status}, and not in the form of this API`, { status: response.status, param: told?.param ?? null, code: told?.code ?? null, wait });
  if (response.status === 401 || response.status === 403) askForKey(refusal);
  throw refusal;
}

/** The events of a stream, parsed. One that breaks off before its end, or says an error, throws. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Refusal("the connection ended before the text did");
    buffer += value;
    const blocks = buffer.split("\n\n");
    buffer = blocks.pop();
    for (const block of blocks) {
      const data = block.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
      if (data === "[DONE]") return;
      if (!data) continue;
      const event = JSON.parse(data);
      if (event.error) throw new Refusal(event.error.message, { status: 500, param: event.error.param, code: event.error.code });
      yield event;
    }
  }
}
