// Adds rows of metadata. Without JavaScript there are two.
const total = document.querySelector("[name=metadata-TOTAL_FORMS]");
const template = document.getElementById("row");
const add = document.getElementById("add-row");
add.hidden = false;
add.addEventListener("click", () => {
  const html = template.innerHTML.replaceAll("__prefix__", total.value++);
  document.getElementById("rows").insertAdjacentHTML("beforeend", html);
  document.querySelector("#rows > :last-child input").focus();
});
