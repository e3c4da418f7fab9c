// The little that all parts need of the document.

export const byId = (id) => document.getElementById(id);

/** A new element with this class and these contents; strings become text, never markup. */
export const element = (tag, className, ...contents) => {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...contents);
  return made;
};

/** Set the text of an element, if it is another: what has not changed is neither laid out nor read aloud again. */
export const setText = (target, text) => {
  if (target.textContent !== text) target.textContent = text;
};
