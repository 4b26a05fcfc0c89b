"use strict";
// Orders the rows of a table by a column: a click, or Enter on its heading; once more, the other way round.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const falling = head.getAttribute("aria-sort") === "ascending";
      const key = (row) => {
        const text = row.cells[column].textContent.trim();
        const number = parseFloat(text.replace("−", "-").replace(/^</, ""));
        return [Number.isNaN(number) ? null : number, text];
      };
      const compare = (one, other) => {
        const [a, b] = [key(one), key(other)];
        if (a[0] !== null && b[0] !== null) return (a[0] - b[0]) * (falling ? -1 : 1);
        if (a[0] === null && b[0] === null) return a[1].localeCompare(b[1]) * (falling ? -1 : 1);
        return a[0] === null ? 1 : -1; // what has no number stands last, whichever way
      };
      body.append(...[...body.rows].sort(compare));
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
    });
  });
}
