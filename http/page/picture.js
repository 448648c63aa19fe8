// The server's picture of a draw, and what slides sideways.

// The server's picture, stripped of all that could act or fetch. It has no styles of its own and takes the page's colours.
const trusted = globalThis.trustedTypes?.createPolicy("picture", { createHTML: (text) => text }) ?? { createHTML: (text) => text };
const DRAWN = /^(svg|g|defs|title|desc|path|rect|line|circle|ellipse|polyline|polygon|text|tspan)$/;

function showPicture(text) {
  const svg = text ? new DOMParser().parseFromString(trusted.createHTML(text), "image/svg+xml").documentElement : null;
  $("picture").hidden = svg?.localName !== "svg";
  if (svg?.localName !== "svg") return;
  for (const element of [svg, ...svg.querySelectorAll("*")]) {
    if (!DRAWN.test(element.localName)) { element.remove(); continue; }
    for (const { name, value } of [...element.attributes]) {
      if (/^(on.*|style|.*href)$/i.test(name) || /url\(/i.test(value)) element.removeAttribute(name);
    }
  }
  $("picture").replaceChildren(document.adoptNode(svg));
  freezeNames(svg);
}

const NAMES = 122;  // how wide the tokens' names are, in the picture's own units

/** The picture's rows once more, cut behind the tokens' names: they stay where they are while the rest slides. */
function freezeNames(svg) {
  const rows = [...svg.children].filter((one) => one.localName === "g");
  if (!rows.length || !svg.clientWidth) return;
  const boxes = rows.map((row) => row.getBBox());
  const top = Math.min(...boxes.map((box) => box.y)) - 1, end = Math.max(...boxes.map((box) => box.y + box.height)) + 1;
  const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
  const names = svg.cloneNode(false);
  for (const name of ["role", "aria-label"]) names.removeAttribute(name);
  names.setAttribute("aria-hidden", "true");
  names.setAttribute("class", "names");
  names.setAttribute("viewBox", `0 ${top} ${NAMES} ${end - top}`);
  names.append(...rows.map((row) => row.cloneNode(true)));
  names.style.width = `${NAMES * scale}px`;
  names.style.marginTop = `${top * scale}px`;
  $("picture").append(names);
}

/** Says of what is wider than its place that one can swipe, and fades it where it goes on. */
function swipes(box) {
  const frame = box.parentElement, words = frame.previousElementSibling;
  const tell = () => {
    words.hidden = box.scrollWidth - box.clientWidth < 3;
    frame.classList.toggle("more", box.scrollLeft + box.clientWidth < box.scrollWidth - 2);
    frame.classList.toggle("slid", box.scrollLeft > 2);
  };
  box.addEventListener("scroll", tell, { passive: true });
  new ResizeObserver(tell).observe(box);
  new MutationObserver(tell).observe(box, { childList: true, attributes: true });
}
swipes($("picture"));
swipes($("candidates"));
