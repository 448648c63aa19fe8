// The key or token: in this page's memory, in the tab's storage only if asked, in the header of a call and nowhere else.

/** A browser's storage, where it may be used at all. */
function kept(storage, name, value) {
  try {
    if (value === null) globalThis[storage].removeItem(name);
    else if (value !== undefined) globalThis[storage].setItem(name, value);
    return globalThis[storage].getItem(name);
  } catch { return null; }
}

let key = kept("sessionStorage", "gnomon-key") ?? "";
let asksForKey = key !== "";

function askForKey(refusal) {
  asksForKey = true;
  $("key-box").hidden = false;
  $("key-open").setAttribute("aria-expanded", "true");
  const wrong = $("key-wrong");
  wrong.textContent = key ? refusal.message : "This server asks who you are: give the key or token that you have for it.";
  wrong.hidden = false;
  $("key").setAttribute("aria-invalid", "true");
  $("key").focus();
}

$("key-box").addEventListener("submit", (event) => {
  event.preventDefault();
  const given = $("key").value.trim();
  const wrong = $("key-wrong");
  wrong.hidden = /^[\x21-\x7e]*$/.test(given);
  if (!wrong.hidden) { wrong.textContent = "A key is one word of ASCII characters; this has others in it."; return; }
  key = given;
  $("key").removeAttribute("aria-invalid");
  kept("sessionStorage", "gnomon-key", key && $("key-keep").checked ? key : null);
  $("key-open").textContent = key ? "API key ✓" : "API key";
  showCall();
  begin();
});

$("key-open").addEventListener("click", () => {
  const box = $("key-box");
  box.hidden = !box.hidden;
  $("key-open").setAttribute("aria-expanded", String(!box.hidden));
  if (!box.hidden) $("key").focus();
});
