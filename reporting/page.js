"use strict";
// Sorting by a column, single runs behind a click. Without it the page shows all of them.
const table = document.getElementById("runs");
const rows = () => [...table.querySelectorAll("tbody.row")];

for (const body of rows()) {
  const fold = body.querySelector(".fold");
  const set = (open) => {
    body.classList.toggle("closed", !open);
    fold.setAttribute("aria-expanded", open);
  };
  set(false);
  body.rows[0].addEventListener("click", () => set(body.classList.contains("closed")));
}

[...table.tHead.rows[0].cells].forEach((head, column) => {
  head.tabIndex = 0;
  const key = (body) => {
    const cell = body.rows[0].cells[column];
    return cell.dataset.v ?? cell.textContent;
  };
  const sort = () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const sorted = rows().sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === "" || y === "") return (x === "") - (y === ""); // unknown last, whichever way
      const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
      return down ? -order : order;
    });
    const first = table.querySelector("tbody.baselines");
    for (const body of sorted) table.insertBefore(body, first);
  };
  head.addEventListener("click", sort);
  head.addEventListener("keydown", (event) => event.key === "Enter" && sort());
});
