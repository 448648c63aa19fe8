// Light, dark, or as the system has it.

const THEMES = { auto: "as the system has them", light: "light", dark: "dark" };
function theme(chosen) {
  if (chosen === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = chosen;
  $("theme").textContent = `Theme: ${chosen}`;
  $("theme").setAttribute("aria-label", `Theme: ${chosen}, colours ${THEMES[chosen]}`);
}
let scheme = kept("localStorage", "gnomon-theme") ?? "auto";
theme(scheme in THEMES ? scheme : "auto");
$("theme").addEventListener("click", () => {
  const names = Object.keys(THEMES);
  scheme = names[(names.indexOf(scheme) + 1) % names.length];
  kept("localStorage", "gnomon-theme", scheme);
  theme(scheme);
});
