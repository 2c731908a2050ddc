// What the page does beyond links: it marks the chosen cell, filters long tables, and opens what is folded for print.
(() => {
  "use strict";

  const mark = () => {
    for (const link of document.querySelectorAll("a[aria-current]")) link.removeAttribute("aria-current");
    const shown = location.hash ? document.getElementById(location.hash.slice(1)) : null;
    const panel = shown?.matches(".panel") ? shown : document.querySelector(".panel.first");
    if (panel) document.querySelector(`a[href="#${panel.id}"]`)?.setAttribute("aria-current", "true");
    shown?.closest("details")?.setAttribute("open", "");
  };
  addEventListener("hashchange", mark);
  mark();

  // a cell whose images stand beside the matrix is chosen without moving the page
  for (const link of document.querySelectorAll('a[href^="#images-"]')) {
    link.addEventListener("click", (event) => {
      const panels = document.querySelector(".panels").getBoundingClientRect();
      if (panels.top < 0 || panels.top > innerHeight / 2) return;
      event.preventDefault();
      const top = scrollY;
      location.hash = link.hash;
      scrollTo({ top, behavior: "instant" });
    });
  }

  const folded = () => document.querySelectorAll("details:not([open])");
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...folded()];
    for (const one of opened) one.open = true;
  });
  addEventListener("afterprint", () => {
    for (const one of opened) one.open = false;
  });
})();
