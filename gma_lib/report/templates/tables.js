// Sort a table's rows by the column whose header is clicked, or chosen with Enter.
for (const table of document.querySelectorAll("table.dataframe")) {
  const rows = [...table.tBodies[0].rows];
  const spread = (row) => [...row.cells].flatMap((cell) => Array(cell.colSpan).fill(cell)); // a cell for each column
  const width = rows.length && spread(rows[0]).length;
  const names = [...table.tHead.rows].find((row) => row.cells.length === width);
  if (rows.length < 3 || !names) continue;
  const divide = () => rows.forEach((row, i) => [...row.cells].forEach((cell, column) => { // rows that share a header get one each
    const sharing = rows.slice(i + 1, i + cell.rowSpan);
    cell.rowSpan = 1;
    for (const other of sharing) other.insertBefore(cell.cloneNode(true), other.cells[column]);
  }));
  const value = (row, column) => spread(row)[column].textContent.trim();
  const number = (text) => parseFloat(text.replaceAll(",", ""));
  for (const header of [...names.cells].filter((cell) => cell.tagName === "TH")) {
    header.tabIndex = 0;
    header.setAttribute("aria-sort", "none");
    const sort = () => {
      divide();
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
