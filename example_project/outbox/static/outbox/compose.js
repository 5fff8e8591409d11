// Focuses the first invalid field, and adds rows of metadata. Without scripts, there are two.
document.querySelector("[aria-invalid]")?.focus();

const total = document.querySelector("[name=metadata-TOTAL_FORMS]");
const template = document.getElementById("row");
const add = document.getElementById("add-row");
add.hidden = false;
add.addEventListener("click", () => {
  const html = template.innerHTML.replaceAll("__prefix__", total.value++);
  document.getElementById("rows").insertAdjacentHTML("beforeend", html);
  document.querySelector("#rows > :last-child input").focus();
});
