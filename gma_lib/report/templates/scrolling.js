// Boxes that scroll get the keyboard's focus and a name, so that nobody needs a mouse to read them.
(() => {
  const names = { PRE: "code or text", TABLE: "table", math: "formula", IMG: "picture" };
  const name = (box) => {
    const caption = box.querySelector("caption"), held = box.matches("pre") ? box : box.querySelector("table, pre, math, img");
    return `${caption ? caption.firstChild.textContent.trim() : names[held?.tagName] ?? "content"}, scrolls`;
  };
  const scrolls = (box) => {
    const { overflowX, overflowY } = getComputedStyle(box), may = ["auto", "scroll"];
    return (box.scrollWidth > box.clientWidth && may.includes(overflowX)) || (box.scrollHeight > box.clientHeight && may.includes(overflowY));
  };
  const look = () => {
    for (const box of document.querySelectorAll("main div, main pre, [role=main] div, [role=main] pre")) {
      if (box.dataset.scrolls) {
        if (!scrolls(box)) for (const given of ["tabindex", "role", "aria-label", "data-scrolls"]) box.removeAttribute(given);
      } else if (scrolls(box) && !box.hasAttribute("tabindex")) {
        box.tabIndex = 0;
        box.setAttribute("role", "group");
        box.setAttribute("aria-label", name(box));
        box.dataset.scrolls = "yes";
      }
    }
  };
  addEventListener("load", look);
  addEventListener("resize", look);
  document.addEventListener("toggle", look, true); // what was folded away has had no size
})();
