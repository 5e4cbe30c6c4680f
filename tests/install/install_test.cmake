# Installs, moves the tree, and runs the moved binary from another folder with an empty environment.
file(REMOVE_RECURSE ${WORK_FOLDER})
execute_process(COMMAND ${CMAKE_COMMAND} --install ${BUILD_FOLDER} --prefix ${WORK_FOLDER}/first OUTPUT_QUIET COMMAND_ERROR_IS_FATAL ANY)
file(RENAME ${WORK_FOLDER}/first "${WORK_FOLDER}/moved here")
foreach(name IN ITEMS bin/dfm share/dfm/LICENSE share/dfm/configs)
  if(NOT EXISTS "${WORK_FOLDER}/moved here/${name}")
    message(FATAL_ERROR "installed tree: got no ${name}, want it")
  endif()
endforeach()
file(MAKE_DIRECTORY ${WORK_FOLDER}/elsewhere)
execute_process(
  COMMAND env -i "${WORK_FOLDER}/moved here/bin/dfm" --help
  WORKING_DIRECTORY ${WORK_FOLDER}/elsewhere
  OUTPUT_VARIABLE help
  COMMAND_ERROR_IS_FATAL ANY)
foreach(word IN ITEMS prepare train generate)
  if(NOT help MATCHES ${word})
    message(FATAL_ERROR "dfm --help of the installed tree: got no '${word}' in:\n${help}")
  endif()
endforeach()
file(REMOVE_RECURSE ${WORK_FOLDER})
