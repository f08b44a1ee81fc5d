// Sort a table's rows by the column whose header is clicked, or chosen with Enter.
for (const table of document.querySelectorAll("table.dataframe")) {
  const rows = [...table.tBodies[0].rows], width = rows[0]?.cells.length;
  const names = [...table.tHead.rows].find(
    (row) => row.cells.length === width && [...row.cells].every((cell) => cell.colSpan === 1));
  const spanned = rows.some((row) => [...row.cells].some((cell) => cell.rowSpan > 1));
  if (rows.length < 3 || !names || spanned) continue;
  const value = (row, column) => row.cells[column].textContent.trim();
  const number = (text) => parseFloat(text.replaceAll(",", ""));
  for (const header of [...names.cells].filter((cell) => cell.tagName === "TH")) {
    header.tabIndex = 0;
    header.setAttribute("aria-sort", "none");
    const sort = () => {
      const descending = header.getAttribute("aria-sort") === "ascending";
      for (const other of names.cells) if (other.ariaSort) other.setAttribute("aria-sort", "none");
      header.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const column = header.cellIndex, sign = descending ? -1 : 1;
      rows.sort((one, two) => {
        const a = number(value(one, column)), b = number(value(two, column));
        if (isNaN(a) !== isNaN(b)) return isNaN(a) - isNaN(b);  // what is no number comes last
        return sign * (isNaN(a) ? value(one, column).localeCompare(value(two, column)) : a - b);
      });
      table.tBodies[0].append(...rows);
    };
    header.addEventListener("click", sort);
    header.addEventListener("keydown", (event) => event.key === "Enter" && sort());
  }
}
