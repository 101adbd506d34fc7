"""Read XML without document type definitions, whose entities can expand without limit or name other files."""

from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from d2_maskrcnn.errors import UserError

MAX_DEPTH = 100  # of nested elements


def read_xml(path: Path) -> Element:
    """Parse an XML file.

    Raises:
        UserError: it cannot be read, is not XML (with line and column), is nested too deeply, or contains a DTD.
    """
    builder, depth = TreeBuilder(), 0
    parser = expat.ParserCreate()

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > MAX_DEPTH:
            raise UserError(f"{path}: XML nested more than {MAX_DEPTH} levels deep; expected an export of CVAT")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def refuse(*_: object) -> None:
        raise UserError(f"{path}: XML with a document type definition (<!DOCTYPE ...>), which can be unsafe; remove it")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = builder.data, refuse
    try:
        with path.open("rb") as file:
            parser.ParseFile(file)
    except expat.ExpatError as error:
        place = f"at line {error.lineno}, column {error.offset}"
        raise UserError(f"{path}: not XML, {expat.ErrorString(error.code)} {place}; export it again") from error
    except LookupError as error:
        raise UserError(f"{path}: XML in an unknown encoding ({error}); export it again as UTF-8") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the disk and the permissions") from error
    return builder.close()
