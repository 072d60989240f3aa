// The explorers ask their parent page whether it is dark, in Jupyter's words. The theme's switch is passed on to them.
const tell = () => { document.body.dataset.jpThemeLight = String(document.documentElement.dataset.theme !== "dark"); };
document.addEventListener("DOMContentLoaded", () => {
  tell();
  new MutationObserver(tell).observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
});
