// Light, dark, or as the system has it. Runs before the first paint, so the page never flashes.

const KEPT = "puna.theme";
const NEXT = { auto: "light", light: "dark", dark: "auto" };
const NAMES = { auto: "as the system", light: "light", dark: "dark" };

apply(localStorage.getItem(KEPT) ?? "auto");
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", tell);

/** Goes on to the next theme and returns its name. */
export function nextTheme() {
  const theme = NEXT[document.documentElement.dataset.theme];
  localStorage.setItem(KEPT, theme);
  apply(theme);
  return NAMES[theme];
}

function apply(theme) {
  document.documentElement.dataset.theme = theme in NEXT ? theme : "auto";
  tell();
}

function tell() {
  document.dispatchEvent(new Event("themechange"));
}
