// Elements of the page, and what is done with them everywhere: finding, making, saying, copying.

const $ = (id) => document.getElementById(id);

/** An element. Text is always text: nothing here makes markup of a string. */
function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const say = (text) => { $("status").textContent = text; };
const still = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

/** Calls at most once in `ms`, with the last arguments. */
function later(ms, act) {
  let timer = 0;
  return (...values) => { clearTimeout(timer); timer = setTimeout(() => act(...values), ms); };
}

async function copied(text, button) {
  const was = button.textContent;
  try { await navigator.clipboard.writeText(text); button.textContent = "Copied"; say("Copied"); }
  catch { button.textContent = "Not allowed to copy"; say("The browser did not allow copying"); }
  setTimeout(() => { button.textContent = was; }, 1600);
}
