"use strict";
// A click on a header sorts by its column: what is missing stays last, equals stay as they were.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const order = [...body.rows];
  for (const [column, head] of heads.entries()) {
    const button = head.querySelector("button");
    if (!button) continue;
    const numeric = head.dataset.kind === "number";
    const value = (row) => row.cells[column].dataset.value;
    button.addEventListener("click", () => {
      // Higher numbers are better, so they come first.
      const first = numeric ? "descending" : "ascending";
      const second = numeric ? "ascending" : "descending";
      const direction = head.getAttribute("aria-sort") === first ? second : first;
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", direction);
      const sign = direction === "ascending" ? 1 : -1;
      const compare = (a, b) =>
        numeric ? Number(a) - Number(b) : a.localeCompare(b, "en", { numeric: true });
      const known = order.filter((row) => value(row) !== undefined);
      const missing = order.filter((row) => value(row) === undefined);
      known.sort((a, b) => sign * compare(value(a), value(b)));
      body.append(...known, ...missing);
    });
  }
}

// A click on a picture shows it as large as the window.
const dialog = document.querySelector("dialog");
for (const button of document.querySelectorAll("button.enlarge")) {
  button.addEventListener("click", () => {
    const figure = button.closest("figure");
    const shown = [button.firstElementChild, ...figure.querySelectorAll(".legend")];
    const copies = shown.map((one) => one.cloneNode(true));
    dialog.querySelector(".large").replaceChildren(...copies);
    dialog.querySelector("p").textContent = figure.querySelector("figcaption").textContent;
    dialog.showModal();
  });
}
dialog.addEventListener("click", () => dialog.close());
